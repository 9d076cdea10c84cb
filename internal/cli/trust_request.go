package cli

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
)

// takenUpIn is how long a leading server needs at most to answer a request.
const takenUpIn = 20 * time.Second

// trustRequest is a verb that creates a RotationRequest.
type trustRequest struct {
	use, short, long, example string
	action                    adminv2.RotationAction
	warning                   string // what it breaks, and what is asked before; empty: nothing
	follows                   bool   // its end is that of the rotation
	then                      string // what to do next
}

func (v trustRequest) clusters() bool {
	return v.action == adminv2.ActionFence || v.action == adminv2.ActionUnfence || v.action == adminv2.ActionRevoke
}

const (
	fenceWarning = "The rotation goes on without these clusters: they and the others may come to refuse each other's certificates, until they are let back in (meshctl trust unfence) and have caught up."

	revokeWarning = "The intermediates of these clusters are put on the revocation list in every cluster, at once: what they signed is refused by whatever reads the list (ztunnel 1.29 and later, with peerCaCrl), inside these clusters too. It can't be taken back. A cluster that stays a member gets a new intermediate by itself; its workloads are refused until they have renewed their certificates (half of their life, 12 h by default) or were restarted."

	emergencyWarning = "Emergency: istiod, ztunnel, gateways and waypoints are restarted in every phase, and connections are closed. Nothing waits for what can't be observed, so that what could not be probed may be refused. No canary, no soak, no cross-signed root."
)

func trustRequests() []trustRequest {
	return []trustRequest{
		{
			use: "rotate", action: adminv2.ActionRotate, follows: true, short: "Begin a rotation to a new root",
			long: `Asks for a new root from the policy's certificate authority, though the policy has not changed. No handshake is to fail: the server goes on when every cluster was seen to
be ready, and says what it waits for. Look before: meshctl trust plan. To change the authority or the algorithm change the policy instead: that begins a rotation as well.
With --emergency, because the old root's key is in wrong hands, it is fast and does break things; a rotation under way goes on as one.`,
			example: `  meshctl trust rotate --reason "yearly, CHG-1234" --mgmt-context mgmt
  meshctl trust rotate --reason "INC-4711: key leaked" --emergency`,
		},
		{
			use: "pause", action: adminv2.ActionPause, short: "Take no further step, wherever the rotation is", long: `Every phase is one in which all clusters accept each other, so it may stay there for long.`,
			example: `  meshctl trust pause --reason "change freeze"`, then: "Go on: meshctl trust resume --reason TEXT",
		},
		{
			use: "resume", action: adminv2.ActionResume, short: "Go on with a paused rotation", long: `Ends a pause.`, example: `  meshctl trust resume --reason "freeze is over"`,
			then: "Follow it: meshctl trust status --watch",
		},
		{
			use: "rollback", action: adminv2.ActionRollback, follows: true, short: "Go back to the old root", long: `Walks the phases backwards, with the same proofs, so that no handshake fails. A rotation whose old keys are being destroyed
(phase Finished) has no way back: rotate again. The root that was rolled back is not tried again.`,
			example: `  meshctl trust rollback --reason "INC-4711: VMs have not got the new root"`,
		},
		{
			use: "fence CLUSTER...", action: adminv2.ActionFence, short: "Go on without clusters that can't be reached", long: `For clusters that a rotation waits for and that will not come back soon. ` + fenceWarning, warning: fenceWarning,
			example: `  meshctl trust fence cluster-3 --reason "data centre is down until Monday"`, then: "Let it back in later: meshctl trust unfence CLUSTER --reason TEXT",
		},
		{
			use: "unfence CLUSTER...", action: adminv2.ActionUnfence, short: "Let fenced clusters back in", long: `They are brought to the present state, proven, and waited for again.`,
			example: `  meshctl trust unfence cluster-3 --reason "it is back"`, then: "Follow it: meshctl trust status --watch",
		},
		{
			use: "revoke CLUSTER...", action: adminv2.ActionRevoke, short: "Put the intermediates of clusters on the revocation list, everywhere", long: revokeWarning + `
Verifiers that read no list go on accepting them, and a root from Vault, AWS or cert-manager can't revoke here: then it is refused, with why. Where that matters rotate the
root. A cluster that is to go needs none of this: meshctl cluster deregister revokes what it had. Without a terminal --yes is needed.`, warning: revokeWarning,
			example: `  meshctl trust revoke cluster-3 --reason "INC-4711: stolen cacerts"
  meshctl trust revoke cluster-3 --reason "INC-4711: stolen cacerts" --yes && kubectl --context cluster-3 -n istio-system rollout restart ds/ztunnel
  meshctl trust status -o json | jq .revoked`, then: "Look where the list is honoured: meshctl trust status",
		},
	}
}

// requestOptions are the flags of these verbs.
type requestOptions struct {
	reason    string
	emergency bool
	yes       bool
	wait      bool
	timeout   time.Duration
}

func (t *trustVerbs) requestCommand(v trustRequest) *cobra.Command {
	o := &requestOptions{}
	cmd := &cobra.Command{
		Use: v.use + " --reason TEXT", DisableFlagsInUseLine: true, Short: v.short, Example: v.example,
		Long: v.long + "\n\nIt creates a RotationRequest, in which the API server records who you are.\n\n" + trustExitHelp,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseFormat(t.output, formatTable, formatJSON, formatYAML)
			if err != nil {
				return err
			}
			if err := o.check(f); err != nil {
				return err
			}
			mgmt, err := t.mgmt()
			if err != nil {
				return err
			}
			return t.ask(cmd.Context(), mgmt, v, args, o, f, cmd.InOrStdin())
		},
	}
	if v.clusters() {
		cmd.ValidArgsFunction = t.completeClusterArgs
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError("which cluster? usage: %s", cmd.UseLine())
			}
			return nil
		}
	}
	t.flagsOf(cmd, formatTable, formatJSON, formatYAML)
	flags := cmd.Flags()
	flags.StringVar(&o.reason, "reason", "", "why, for the record")
	if v.action == adminv2.ActionRotate {
		flags.BoolVar(&o.emergency, "emergency", false, "the old root's key is in wrong hands: be fast, though it breaks things")
	}
	if v.warning != "" || v.action == adminv2.ActionRotate {
		flags.BoolVarP(&o.yes, "yes", "y", false, "don't ask")
	}
	if v.follows {
		flags.BoolVar(&o.wait, "wait", t.streams.Terminal, "follow it to its end; Ctrl-C leaves it going (default: on a terminal)")
		flags.DurationVar(&o.timeout, "timeout", 0, "how long to follow it; 0: to its end, which may take days")
	}
	return cmd
}

func (o *requestOptions) check(f format) error {
	switch {
	case strings.TrimSpace(o.reason) == "":
		return usageError("why? --reason is required: it is what auditors read, such as --reason \"yearly, CHG-1234\"")
	case len(o.reason) > 1024:
		return usageError("--reason has %d bytes: at most 1024", len(o.reason))
	case o.timeout < 0:
		return usageError("--timeout %s: want 0 or more", o.timeout)
	}
	if f != formatTable {
		o.wait = false
	}
	return nil
}

// confirm asks a person; a script has to give --yes.
func (t *trustVerbs) confirm(warning string, o *requestOptions, in io.Reader) error {
	if warning == "" {
		return nil
	}
	fmt.Fprintln(t.streams.Err, warning)
	if o.yes {
		return nil
	}
	if !t.streams.Terminal {
		return usageError("nothing was done: give --yes if that is what you want")
	}
	fmt.Fprint(t.streams.Err, "Do it? Type yes: ")
	if answer, _ := bufio.NewReader(io.LimitReader(in, 64)).ReadString('\n'); strings.TrimSpace(answer) != "yes" {
		return usageError("nothing was done")
	}
	return nil
}

func (t *trustVerbs) ask(ctx context.Context, mgmt *cluster, v trustRequest, clusters []string, o *requestOptions, f format, in io.Reader) error {
	request, err := t.requestOf(ctx, mgmt, v, clusters, o)
	if err != nil {
		return err
	}
	warning := v.warning
	if o.emergency {
		warning = emergencyWarning
	}
	if err := t.confirm(warning, o, in); err != nil {
		return err
	}
	if err := mgmt.Create(ctx, request); err != nil {
		if apierrors.IsForbidden(err) {
			return forbidden(mgmt.Context, []need{{[]string{"create"}, adminv2.GroupName, "rotationrequests", t.Namespace}})
		}
		return mgmt.saysTrust("create RotationRequest "+request.Name, err)
	}
	request, err = t.answered(ctx, mgmt, request)
	if err != nil {
		return err
	}
	if f != formatTable {
		if err := printDocument(t.streams.Out, f, request); err != nil {
			return err
		}
	} else {
		t.printAnswer(request)
	}
	switch {
	case request.Status.State == adminv2.RequestRefused:
		return fmt.Errorf("the management server refused it: %s", firstOf(request.Status.Message, "it does not say why"))
	case v.follows && o.wait:
		return t.awaitRotation(ctx, mgmt, request, o.timeout)
	case f == formatTable:
		fmt.Fprintln(t.streams.Out, firstOf(v.then, "Follow it: meshctl trust status --watch"))
	}
	return nil
}

func (t *trustVerbs) printAnswer(r *adminv2.RotationRequest) {
	w := t.streams.Out
	fmt.Fprintf(w, "RotationRequest %s/%s: %s of policy %s", r.Namespace, r.Name, r.Spec.Action, r.Spec.Policy)
	if len(r.Spec.Clusters) > 0 {
		fmt.Fprintf(w, ", %s", strings.Join(r.Spec.Clusters, ", "))
	}
	fmt.Fprintf(w, ".\nRecorded as %s: %s\n", firstOf(r.Status.By, "you"), r.Spec.Reason)
	if r.Status.State == adminv2.RequestDone && r.Status.Message != "" {
		fmt.Fprintln(w, r.Status.Message)
	}
}

// requestOf makes the request, of a policy and clusters that exist.
func (t *trustVerbs) requestOf(ctx context.Context, mgmt *cluster, v trustRequest, clusters []string, o *requestOptions) (*adminv2.RotationRequest, error) {
	ctx, cancel := context.WithTimeout(ctx, policyTimeout)
	defer cancel()
	all, err := mgmt.rootPolicies(ctx, t.Namespace)
	if err != nil {
		return nil, err
	}
	policy, err := t.choose(policyNames(all))
	if err != nil {
		return nil, err
	}
	if len(clusters) > 0 {
		names, err := t.clusterNames(ctx, mgmt)
		if err != nil {
			return nil, err
		}
		if err := known("cluster", clusters, names); err != nil {
			return nil, err
		}
	}
	verb, _, _ := strings.Cut(v.use, " ")
	return &adminv2.RotationRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: t.Namespace, Name: verb + "-" + strings.TrimRight(policy[:min(len(policy), 200)], "-.") + "-" + strings.ToLower(rand.Text()[:5])},
		Spec: adminv2.RotationRequestSpec{
			Policy: policy, Action: v.action, Clusters: slices.Compact(slices.Sorted(slices.Values(clusters))), Reason: o.reason, Emergency: o.emergency,
		},
	}, nil
}

// answered waits until the server has taken the request up.
func (t *trustVerbs) answered(ctx context.Context, mgmt *cluster, r *adminv2.RotationRequest) (*adminv2.RotationRequest, error) {
	ctx, cancel := context.WithTimeout(ctx, takenUpIn)
	defer cancel()
	got, err := awaitObject(ctx, mgmt, &adminv2.RotationRequestList{}, r.Namespace, r.Name, func(r *adminv2.RotationRequest) (bool, error) {
		return r.Status.State == adminv2.RequestDone || r.Status.State == adminv2.RequestRefused, nil
	})
	switch {
	case err == nil:
		return got, nil
	case errors.Is(err, errGone):
		return nil, fmt.Errorf("somebody deleted RotationRequest %s before it was taken up", r.Name)
	case errors.Is(err, context.DeadlineExceeded):
		return nil, notReached(fmt.Errorf("RotationRequest %s/%s exists, but no management server has taken it up in %s; it will when it runs again. Look: meshctl check --kubecontext %s; take it back: kubectl delete rotationrequest -n %s %s",
			r.Namespace, r.Name, short(takenUpIn), mgmt.Context, r.Namespace, r.Name))
	}
	return nil, mgmt.saysTrust("wait for RotationRequest "+r.Name, err)
}
