package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	authorizationv1 "k8s.io/api/authorization/v1"
)

// need is one thing a command has to be allowed to do.
type need struct {
	Verbs           []string
	Group, Resource string
	Namespace       string // empty: cluster-wide
}

func (n need) String() string {
	resource := n.Resource
	if n.Group != "" {
		resource += "." + n.Group
	}
	where := "cluster-wide"
	if n.Namespace != "" {
		where = fmt.Sprintf("in namespace %q", n.Namespace)
	}
	return fmt.Sprintf("%s %s %s", strings.Join(n.Verbs, ","), resource, where)
}

// mgmtNeeds is what registering takes on the management cluster.
func mgmtNeeds(namespace string) []need {
	return []need{
		{[]string{"get", "list", "watch", "create", "patch"}, "admin.gloo.solo.io", "kubernetesclusters", namespace},
		{[]string{"get", "list", "create", "update"}, "", "secrets", namespace},
		{[]string{"get"}, "", "services", namespace},
		{[]string{"get"}, "", "namespaces", ""},
	}
}

// remoteNeeds is what installing an agent takes on its cluster.
func remoteNeeds(namespace string) []need {
	write := []string{"get", "create", "patch"}
	return []need{
		{[]string{"get", "create"}, "", "namespaces", ""},
		{[]string{"get", "list", "create", "update", "patch", "delete"}, "", "secrets", namespace},
		{[]string{"get", "list", "watch", "create", "patch"}, "apps", "deployments", namespace},
		{write, "", "serviceaccounts", namespace},
		{write, "rbac.authorization.k8s.io", "roles", namespace},
		{write, "rbac.authorization.k8s.io", "rolebindings", namespace},
		{write, "rbac.authorization.k8s.io", "clusterroles", ""},
		{write, "rbac.authorization.k8s.io", "clusterrolebindings", ""},
		{write, "apiextensions.k8s.io", "customresourcedefinitions", ""},
	}
}

// lacking asks the API server which of the needs the person lacks. It returns nothing it could not ask about.
func (c *cluster) lacking(ctx context.Context, needs []need) ([]need, error) {
	type question struct{ need, verb int }
	denied := make([][]bool, len(needs))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i, n := range needs {
		denied[i] = make([]bool, len(n.Verbs))
		for j, verb := range n.Verbs {
			q := question{i, j}
			g.Go(func() error {
				review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
					ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: n.Namespace, Verb: verb, Group: n.Group, Resource: n.Resource},
				}}
				if err := c.Create(ctx, review); err != nil {
					return err
				}
				denied[q.need][q.verb] = !review.Status.Allowed
				return nil
			})
		}
	}
	if err := g.Wait(); err != nil {
		return nil, c.says("ask what you may do (SelfSubjectAccessReview)", err)
	}
	var out []need
	for i, n := range needs {
		var verbs []string
		for j, verb := range n.Verbs {
			if denied[i][j] {
				verbs = append(verbs, verb)
			}
		}
		if len(verbs) > 0 {
			n.Verbs = verbs
			out = append(out, n)
		}
	}
	return out, nil
}

// forbidden says what is lacking where; nil when nothing is.
func forbidden(contextName string, lacking []need) error {
	if len(lacking) == 0 {
		return nil
	}
	lines := make([]string, len(lacking))
	for i, n := range lacking {
		lines[i] = "    " + n.String()
	}
	slices.Sort(lines)
	return fmt.Errorf("context %q: you may not:\n%s\nask for these rights, or use a context of somebody who has them; nothing was changed", contextName, strings.Join(lines, "\n"))
}
