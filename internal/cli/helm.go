package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/release/common"
	release "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage/driver"

	"ambitmesh.dev/ambit/charts"
)

// helm installs the embedded charts into one namespace of one cluster.
type helm struct {
	cluster   *cluster
	namespace string
	app       *app
}

// abandoned is how old a pending release must be to count as left behind by a command that was killed.
const abandoned = 2 * time.Minute

func (h *helm) configuration() (*action.Configuration, error) {
	g, err := newGetter(h.cluster, h.namespace)
	if err != nil {
		return nil, err
	}
	config := action.NewConfiguration(action.ConfigurationSetLogger(h.app.log.Handler()))
	if err := config.Init(g, h.namespace, "secret"); err != nil {
		return nil, fmt.Errorf("context %q: helm: %w", h.cluster.Context, err)
	}
	return config, nil
}

// last returns the newest revision of a release, or nil.
func last(config *action.Configuration, name string) (*release.Release, error) {
	found, err := config.Releases.Last(name)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r, ok := found.(*release.Release)
	if !ok {
		return nil, fmt.Errorf("release %q is of an unknown format %T", name, found)
	}
	return r, nil
}

// values returns what people set on the release's last revision; nil when there is no such release.
func (h *helm) values(name string) (map[string]any, error) {
	config, err := h.configuration()
	if err != nil {
		return nil, err
	}
	r, err := last(config, name)
	if err != nil || r == nil {
		return nil, h.cluster.says("read Helm release "+name, err)
	}
	return r.Config, nil
}

// apply installs or upgrades a release of an embedded chart. It does not wait for Pods: what is waited for is the cluster's own state.
func (h *helm) apply(ctx context.Context, name, chartName string, values map[string]any) (*release.Release, error) {
	what := fmt.Sprintf("install chart %s as Helm release %s/%s", chartName, h.namespace, name)
	chart, err := charts.Load(chartName)
	if err != nil {
		return nil, err
	}
	config, err := h.configuration()
	if err != nil {
		return nil, err
	}
	previous, err := last(config, name)
	if err != nil {
		return nil, h.cluster.says(what, err)
	}
	if previous, err = h.recover(config, previous); err != nil {
		return nil, h.cluster.says(what, err)
	}
	var out any
	if previous == nil {
		install := action.NewInstall(config)
		install.ReleaseName, install.Namespace = name, h.namespace
		install.WaitStrategy = kube.HookOnlyStrategy
		install.DisableOpenAPIValidation = true // the API server validates what is applied, strictly
		install.ForceConflicts, install.TakeOwnership = true, true
		install.Timeout = time.Minute
		out, err = install.RunWithContext(ctx, chart, values)
	} else {
		upgrade := action.NewUpgrade(config)
		upgrade.Namespace = h.namespace
		upgrade.WaitStrategy = kube.HookOnlyStrategy
		upgrade.DisableOpenAPIValidation = true
		upgrade.ServerSideApply, upgrade.ForceConflicts, upgrade.TakeOwnership = "true", true, true
		upgrade.ResetValues, upgrade.MaxHistory = true, 5
		upgrade.Timeout = time.Minute
		out, err = upgrade.RunWithContext(ctx, name, chart, values)
	}
	if err != nil {
		return nil, h.cluster.says(what, err)
	}
	r, _ := out.(*release.Release)
	return r, nil
}

// render returns what apply would apply.
func (h *helm) render(ctx context.Context, name, chartName string, values map[string]any) (string, error) {
	chart, err := charts.Load(chartName)
	if err != nil {
		return "", err
	}
	config, err := h.configuration()
	if err != nil {
		return "", err
	}
	install := action.NewInstall(config)
	install.ReleaseName, install.Namespace = name, h.namespace
	install.DryRunStrategy = action.DryRunServer
	install.DisableOpenAPIValidation, install.TakeOwnership = true, true
	out, err := install.RunWithContext(ctx, chart, values)
	if err != nil {
		return "", h.cluster.says("render chart "+chartName, err)
	}
	r, ok := out.(*release.Release)
	if !ok {
		return "", fmt.Errorf("release %q is of an unknown format %T", name, out)
	}
	return r.Manifest, nil
}

// recover deals with what a killed command left: a revision for ever pending, which Helm takes for a running operation.
func (h *helm) recover(config *action.Configuration, r *release.Release) (*release.Release, error) {
	if r == nil {
		return nil, nil
	}
	if r.Info.Status.IsPending() {
		if age := time.Since(r.Info.LastDeployed); age < abandoned {
			return nil, fmt.Errorf("another command changes release %q since %s (%s); wait for it to end, or %s more if it was killed",
				r.Name, short(age), r.Info.Status, short(abandoned-age))
		}
		r.SetStatus(common.StatusFailed, "left behind by a command that was killed")
		if err := config.Releases.Update(r); err != nil {
			return nil, err
		}
	}
	if r.Info.Status == common.StatusDeployed {
		return r, nil
	}
	if _, err := config.Releases.Deployed(r.Name); err == nil {
		return r, nil
	}
	// Nothing of it ever worked: begin anew and adopt what is there.
	history, err := config.Releases.History(r.Name)
	if err != nil {
		return nil, err
	}
	for _, old := range history {
		if old, ok := old.(*release.Release); ok {
			if _, err := config.Releases.Delete(old.Name, old.Version); err != nil {
				return nil, err
			}
		}
	}
	return nil, nil
}

// uninstall removes a release; it reports whether there was one.
func (h *helm) uninstall(name string) (bool, error) {
	config, err := h.configuration()
	if err != nil {
		return false, err
	}
	r, err := last(config, name)
	if err != nil || r == nil {
		return false, h.cluster.says("read Helm release "+name, err)
	}
	uninstall := action.NewUninstall(config)
	uninstall.WaitStrategy = kube.HookOnlyStrategy
	uninstall.IgnoreNotFound = true
	uninstall.Timeout = time.Minute
	_, err = uninstall.Run(name)
	return true, h.cluster.says("uninstall Helm release "+name, err)
}

// merge lays b over a: maps are merged, everything else is replaced. Neither is changed.
func merge(a, b map[string]any) map[string]any { return loader.MergeMaps(a, b) }

// valueAt reads a nested value.
func valueAt(values map[string]any, path ...string) any {
	var at any = values
	for _, key := range path {
		m, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = m[key]
	}
	return at
}
