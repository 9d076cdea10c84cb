package control

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/template"
)

// kubeconfig is the data of kubeconfigText. The values need no escaping in YAML
// within the quotes that %q puts.
type kubeconfig struct {
	Current  string
	Clusters []kubeconfigCluster
	Users    []kubeconfigUser
}

type kubeconfigCluster struct{ Name, Server, CA, User string }

type kubeconfigUser struct{ Name, Cert, Key string }

const kubeconfigText = `apiVersion: v1
kind: Config
clusters:
{{- range .Clusters}}
- name: {{printf "%q" .Name}}
  cluster:
    server: {{printf "%q" .Server}}
    certificate-authority-data: {{.CA}}
{{- end}}
users:
{{- range .Users}}
- name: {{printf "%q" .Name}}
  user:
    client-certificate-data: {{.Cert}}
    client-key-data: {{.Key}}
{{- end}}
contexts:
{{- range .Clusters}}
- name: {{printf "%q" .Name}}
  context:
    cluster: {{printf "%q" .Name}}
    user: {{printf "%q" .User}}
{{- end}}
current-context: {{printf "%q" .Current}}
`

// WriteKubeconfig writes the kubeconfig for people: a context per cluster, named as
// the cluster, with the API servers' addresses on the host. The current context is
// the cluster named "mgmt", or else the first. The clusters must have been prepared
// and must share their PeopleDir.
func WriteKubeconfig(path string, clusters []Cluster) error {
	if len(clusters) == 0 {
		return errors.New("write kubeconfig: no clusters")
	}
	k := kubeconfig{Current: clusters[0].Name}
	for _, c := range clusters {
		if c.HostAddr == "" {
			return fmt.Errorf("write kubeconfig: cluster %q has no address on the host", c.Name)
		}
		if c.people() != clusters[0].people() {
			return fmt.Errorf("write kubeconfig: clusters %q and %q do not share their people", clusters[0].Name, c.Name)
		}
		if c.Name == "mgmt" {
			k.Current = c.Name
		}
		ca, err := fileBase64(c.CAFile())
		if err != nil {
			return fmt.Errorf("write kubeconfig: cluster %q: %w", c.Name, err)
		}
		k.Clusters = append(k.Clusters, kubeconfigCluster{Name: c.Name, Server: "https://" + c.HostAddr, CA: ca, User: Person})
	}
	user, err := readUser(Person, filepath.Join(clusters[0].people(), "person"))
	if err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	k.Users = []kubeconfigUser{user}
	return k.write(path)
}

// writeComponentKubeconfigs writes the kubeconfigs with the in-lab address.
func writeComponentKubeconfigs(c Cluster) error {
	ca, err := fileBase64(c.CAFile())
	if err != nil {
		return err
	}
	for _, f := range []struct{ path, name, pair string }{
		{c.AdminKubeconfig(), "lab-admin", "admin"},
		{c.NodeKubeconfig(), "node", "node"},
		{c.controllerManagerKubeconfig(), "controller-manager", "controller-manager"},
		{c.schedulerKubeconfig(), "scheduler", "scheduler"},
	} {
		user, err := readUser(f.name, c.pki(f.pair))
		if err != nil {
			return err
		}
		k := kubeconfig{
			Current:  c.Name,
			Clusters: []kubeconfigCluster{{Name: c.Name, Server: "https://" + c.APIAddress(), CA: ca, User: f.name}},
			Users:    []kubeconfigUser{user},
		}
		if err := k.write(f.path); err != nil {
			return err
		}
	}
	return nil
}

func (k kubeconfig) write(path string) error {
	var out bytes.Buffer
	text, err := template.New("kubeconfig").Parse(kubeconfigText)
	if err != nil {
		return err
	}
	if err := text.Execute(&out, k); err != nil {
		return err
	}
	return writeFile(path, out.Bytes(), 0o600)
}

func readUser(name, pair string) (kubeconfigUser, error) {
	cert, err := fileBase64(pair + ".crt")
	if err != nil {
		return kubeconfigUser{}, err
	}
	key, err := fileBase64(pair + ".key")
	return kubeconfigUser{Name: name, Cert: cert, Key: key}, err
}

func fileBase64(path string) (string, error) {
	raw, err := os.ReadFile(path)
	return base64.StdEncoding.EncodeToString(raw), err
}
