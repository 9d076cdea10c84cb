package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
)

// trustPoll is how often a rotation is looked at.
const trustPoll = time.Second

// errRotationGoesOn: the person stopped watching.
var errRotationGoesOn = errors.New("you stopped watching; the rotation goes on without you: meshctl trust status --watch")

// follower tells of a policy's changes, one line each.
type follower struct {
	say  func(level, text string)
	head string
	each map[string]string // message by cluster
}

// look tells what is new since the last look.
func (f *follower) look(p *adminv2.RootTrustPolicy, now time.Time) {
	t := policyTrustOf(p)
	head := firstOf(string(t.Phase), string(adminv2.PhaseSteady)) + stepOf(t.Phase) + ": " + firstOf(t.Message, string(t.State))
	if head != f.head {
		f.head = head
		level := "ok"
		switch {
		case wrong(t.State) || t.Rotating == adminv2.ReasonBlocked:
			level = "warning"
		case t.rotating():
			level = "note"
		}
		f.say(level, countdown(head, now))
	}
	if f.each == nil {
		f.each = map[string]string{}
	}
	for _, c := range t.Clusters {
		said := string(c.State) + " " + c.Message
		if was, known := f.each[c.Name]; was == said || !known && c.State == adminv2.ApprovalAccepted {
			f.each[c.Name] = said
			continue
		}
		f.each[c.Name] = said
		level := map[adminv2.ApprovalState]string{adminv2.ApprovalAccepted: "ok", adminv2.ApprovalPending: "note"}[c.State]
		f.say(firstOf(level, "warning"), "  "+c.Name+": "+countdown(firstOf(c.Message, string(c.State)), now))
	}
}

// follow looks at a policy until done says so. An API server that does not answer for a while is asked again.
func (t *trustVerbs) follow(ctx context.Context, c *cluster, name string, done func(*adminv2.RootTrustPolicy) bool) (*adminv2.RootTrustPolicy, error) {
	p := t.newProgress(t.streams.Out)
	f := &follower{say: func(level, text string) { p.say(level, false, "%s", text) }}
	failed := ""
	for {
		var policy adminv2.RootTrustPolicy
		err := c.Get(ctx, client.ObjectKey{Namespace: t.Namespace, Name: name}, &policy)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err == nil:
			failed = ""
			f.look(&policy, time.Now())
			if done(&policy) {
				return &policy, nil
			}
		case !unreachable(err):
			return nil, c.saysTrust("read RootTrustPolicy "+name, err)
		case failed == "":
			failed = err.Error()
			p.warn("the API server does not answer; asking again: %s", oneLine(failed, 200))
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(trustPoll):
		}
	}
}

// steady reports whether no rotation is under way.
func steady(p *adminv2.RootTrustPolicy) bool {
	t := policyTrustOf(p)
	return !t.rotating() && t.Phase != "Unknown"
}

func (t *trustVerbs) watch(ctx context.Context, c *cluster) error {
	all, err := c.rootPolicies(ctx, t.Namespace)
	if err != nil {
		return err
	}
	names := policyNames(all)
	if running := slices.DeleteFunc(slices.Clone(all), func(p adminv2.RootTrustPolicy) bool { t := policyTrustOf(&p); return !t.rotating() }); t.policy == "" && len(running) > 0 {
		names = policyNames(running)
	}
	name, err := t.choose(names)
	if err != nil {
		return err
	}
	p, err := t.follow(ctx, c, name, steady)
	switch {
	case errors.Is(err, context.Canceled):
		return errRotationGoesOn
	case err != nil:
		return err
	case wrong(p.Status.State):
		return &exitError{ExitFailed, errSilent}
	}
	return nil
}

// awaitRotation follows what was asked for to its end.
func (t *trustVerbs) awaitRotation(ctx context.Context, c *cluster, r *adminv2.RotationRequest, timeout time.Duration) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	back := r.Spec.Action == adminv2.ActionRollback
	p, err := t.follow(ctx, c, r.Spec.Policy, func(p *adminv2.RootTrustPolicy) bool {
		active := slices.IndexFunc(p.Status.Roots, func(x adminv2.RootStatus) bool { return x.Role == adminv2.RootActive })
		return steady(p) && active >= 0 && (back || p.Status.Roots[active].Generation >= r.Status.Generation) || blockedAtStart(p, back)
	})
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return notReached(fmt.Errorf("not finished after %s; it goes on: meshctl trust status --watch", short(timeout)))
	case errors.Is(err, context.Canceled):
		return errRotationGoesOn
	case err != nil:
		return err
	case blockedAtStart(p, back):
		return fmt.Errorf("%s. Everything that is in the way: meshctl trust plan --policy %s", strings.TrimSuffix(policyTrustOf(p).Message, "."), p.Name)
	}
	fmt.Fprintf(t.streams.Out, "Done: %s\n", firstOf(policyTrustOf(p).Message, "the rotation is at its end"))
	return nil
}

// blockedAtStart: the server refuses to begin.
func blockedAtStart(p *adminv2.RootTrustPolicy, back bool) bool {
	t := policyTrustOf(p)
	return !back && !t.rotating() && t.Rotating == adminv2.ReasonBlocked
}
