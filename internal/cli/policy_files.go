package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// document is one object of a file.
type document struct {
	Where string // "billing.yaml, line 12", for messages
	Kind  metav1.TypeMeta
	Meta  metav1.ObjectMeta
	JSON  []byte
}

func (d *document) String() string {
	name := firstOf(d.Meta.Name, "(without a name)")
	if d.Meta.Namespace != "" {
		name = d.Meta.Namespace + "/" + name
	}
	return fmt.Sprintf("%s %s (%s)", d.Kind.Kind, name, d.Where)
}

// readDocuments reads the objects of files, folders (not those inside them) and, for "-", of standard input.
func readDocuments(paths []string, stdin io.Reader) ([]document, error) {
	var out []document
	for _, path := range paths {
		files, err := filesOf(path)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			raw, err := readFile(file, stdin)
			if err != nil {
				return nil, usageError("-f: %w", err)
			}
			docs, err := parseDocuments(file, raw)
			if err != nil {
				return nil, err
			}
			out = append(out, docs...)
		}
	}
	return out, nil
}

func readFile(file string, stdin io.Reader) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(file)
}

// filesOf lists the manifests that a path means.
func filesOf(path string) ([]string, error) {
	if path == "-" {
		return []string{"-"}, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, usageError("-f: %w", err)
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := fs.ReadDir(os.DirFS(path), ".")
	if err != nil {
		return nil, usageError("-f: %w", err)
	}
	var out []string
	for _, e := range entries {
		if !e.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) {
			out = append(out, filepath.Join(path, e.Name()))
		}
	}
	if len(out) == 0 {
		return nil, usageError("-f %s: the folder has no .yaml, .yml or .json file (folders inside it are not read)", path)
	}
	return out, nil
}

// parseDocuments splits a file into objects. The items of a List count as documents.
func parseDocuments(file string, raw []byte) ([]document, error) {
	if file == "-" {
		file = "standard input"
	}
	var out []document
	for _, part := range splitYAML(raw) {
		where := fmt.Sprintf("%s, line %d", file, part.line)
		text, err := yaml.YAMLToJSONStrict(part.text)
		if err != nil {
			if hint := placeholder(part); hint != "" {
				return nil, usageError("%s: %s", file, hint)
			}
			return nil, usageError("%s: the document that begins there is not YAML: %s", where, strings.TrimPrefix(err.Error(), "yaml: "))
		}
		if string(text) == "null" {
			continue
		}
		docs, err := documentsOf(where, text)
		if err != nil {
			return nil, err
		}
		for i := range docs {
			if hint := placeholder(part); hint != "" && ours(&docs[i]) {
				return nil, usageError("%s: %s", file, hint)
			}
		}
		out = append(out, docs...)
	}
	return out, nil
}

func documentsOf(where string, text []byte) ([]document, error) {
	var head struct {
		metav1.TypeMeta
		Metadata metav1.ObjectMeta `json:"metadata"`
		Items    []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, usageError("%s: not a Kubernetes object: %w", where, err)
	}
	if head.Kind == "" || head.APIVersion == "" {
		return nil, usageError("%s: not a Kubernetes object: it has no %s", where, map[bool]string{true: "kind", false: "apiVersion"}[head.Kind == ""])
	}
	if strings.HasSuffix(head.Kind, "List") && head.Items != nil {
		var out []document
		for i, item := range head.Items {
			docs, err := documentsOf(fmt.Sprintf("%s, item %d", where, i+1), item)
			if err != nil {
				return nil, err
			}
			out = append(out, docs...)
		}
		return out, nil
	}
	return []document{{Where: where, Kind: head.TypeMeta, Meta: head.Metadata, JSON: text}}, nil
}

// yamlPart is a document's text and its first line's number.
type yamlPart struct {
	line int
	text []byte
}

// splitYAML cuts a stream at the lines that begin with "---" (YAML 1.2, 9.1.2) and keeps count of lines. Parts of nothing but comments are left out.
func splitYAML(raw []byte) []yamlPart {
	var out []yamlPart
	part, n := yamlPart{}, 0
	end := func() {
		if part.line > 0 {
			out = append(out, part)
		}
		part = yamlPart{}
	}
	for line := range bytes.Lines(raw) {
		n++
		if bytes.HasPrefix(line, []byte("---")) {
			end()
			continue
		}
		content := bytes.TrimSpace(line)
		if part.line == 0 && (len(content) == 0 || content[0] == '#') {
			continue
		}
		if part.line == 0 {
			part.line = n
		}
		part.text = append(part.text, line...)
	}
	end()
	return out
}

var (
	helmPlaceholder = regexp.MustCompile(`\{\{.*?\}\}`)
	shellVariable   = regexp.MustCompile(`\$\{[A-Za-z_][A-Za-z0-9_]*\}|\$[A-Z_][A-Z0-9_]+`)
)

// placeholder says which template placeholder was left in a text, empty: none.
func placeholder(p yamlPart) string {
	n := p.line - 1
	for line := range bytes.Lines(p.text) {
		n++
		if bytes.HasPrefix(bytes.TrimSpace(line), []byte("#")) {
			continue
		}
		if m := helmPlaceholder.Find(line); m != nil {
			return fmt.Sprintf("line %d has the Helm placeholder %s: render the chart first, as in helm template CHART | meshctl policy diff -f -", n, m)
		}
		if m := shellVariable.Find(line); m != nil {
			return fmt.Sprintf("line %d has the variable %s, which nobody filled in: run it through envsubst first, as in envsubst < FILE | meshctl policy diff -f -", n, m)
		}
	}
	return ""
}
