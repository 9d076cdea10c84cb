package apply

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/internal/mesh"
)

// InventoryName is the ConfigMap that lists what the agent applied, one ref ("group/version/kind/namespace/name") a line in key objects.
// When it is full, InventoryName-1 and so on follow.
const (
	InventoryName = "gloo-mesh-agent-inventory"
	inventoryKey  = "objects"
	shardLines    = 4000 // about 500 KiB; a ConfigMap holds 1 MiB
)

// inventory keeps the list of what we applied in ConfigMaps of the agent's own namespace. Only listed objects are ever deleted.
type inventory struct {
	maps    dynamic.ResourceInterface
	refs    map[mesh.Ref]bool
	written []string // contents of the shards as last read or written
}

func newInventory(client dynamic.Interface, namespace string) *inventory {
	return &inventory{maps: client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace(namespace)}
}

func shardName(i int) string {
	if i == 0 {
		return InventoryName
	}
	return InventoryName + "-" + strconv.Itoa(i)
}

// load reads all shards. A line that can't be read is an error: forgetting what we applied would leave it behind for ever.
func (inv *inventory) load(ctx context.Context) error {
	refs := map[mesh.Ref]bool{}
	var written []string
	for i := 0; ; i++ {
		u, err := inv.maps.Get(ctx, shardName(i), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the inventory: %w", err)
		}
		text, _, _ := unstructured.NestedString(u.Object, "data", inventoryKey)
		written = append(written, text)
		for line := range strings.Lines(text) {
			ref, ok := mesh.ParseRef(strings.TrimSpace(line))
			if !ok {
				return fmt.Errorf("ConfigMap %s: %q is not group/version/kind/namespace/name; mend or delete the line", shardName(i), strings.TrimSpace(line))
			}
			refs[ref] = true
		}
	}
	inv.refs, inv.written = refs, written
	return nil
}

// add lists refs, on the API server first.
func (inv *inventory) add(ctx context.Context, refs []mesh.Ref) error {
	if len(refs) == 0 {
		return nil
	}
	next := maps.Clone(inv.refs)
	for _, r := range refs {
		next[r] = true
	}
	shards := shardsOf(next)
	// Lines move to later shards: the last one is written first, so that a crash in between leaves some twice and none out.
	for i, text := range slices.Backward(shards) {
		if err := inv.write(ctx, i, text); err != nil {
			return err
		}
	}
	inv.refs = next
	return nil
}

// remove takes refs off the list, on the API server first.
func (inv *inventory) remove(ctx context.Context, refs []mesh.Ref) error {
	if len(refs) == 0 {
		return nil
	}
	next := maps.Clone(inv.refs)
	for _, r := range refs {
		delete(next, r)
	}
	shards := shardsOf(next)
	for i, text := range shards { // lines move to earlier shards: see add
		if err := inv.write(ctx, i, text); err != nil {
			return err
		}
	}
	for len(inv.written) > len(shards) {
		last := len(inv.written) - 1
		if err := inv.maps.Delete(ctx, shardName(last), metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("shorten the inventory: %w", err)
		}
		inv.written = inv.written[:last]
	}
	inv.refs = next
	return nil
}

// shardsOf is the inventory as text; never less than one shard. Pure.
func shardsOf(refs map[mesh.Ref]bool) []string {
	lines := make([]string, 0, len(refs))
	for r := range refs {
		lines = append(lines, r.String()+"\n")
	}
	slices.Sort(lines)
	shards := []string{}
	for chunk := range slices.Chunk(lines, shardLines) {
		shards = append(shards, strings.Join(chunk, ""))
	}
	if len(shards) == 0 {
		shards = []string{""}
	}
	return shards
}

// write writes one shard, unless it is so already.
func (inv *inventory) write(ctx context.Context, i int, text string) error {
	if i < len(inv.written) && inv.written[i] == text {
		return nil
	}
	name := shardName(i)
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": name, "labels": map[string]any{"app": "gloo-mesh-agent"}},
		"data":     map[string]any{inventoryKey: text},
	}}
	if _, err := inv.maps.Apply(ctx, name, u, metav1.ApplyOptions{FieldManager: FieldManager, Force: true}); err != nil {
		return fmt.Errorf("write ConfigMap %s: %w", name, err)
	}
	for len(inv.written) <= i {
		inv.written = append(inv.written, "")
	}
	inv.written[i] = text
	return nil
}
