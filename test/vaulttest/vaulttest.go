// Package vaulttest gives a test a real Vault server.
//
// In: AMBIT_TEST_VAULT, the program that `labbuild vault` builds. Out: an unsealed Vault in memory on 127.0.0.1, one for each call, stopped when the test ends. It fails, and does not
// skip, when there is none. It must not be used outside tests.
package vaulttest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
)

// Server is a real Vault (lab/vault), for one test. Its Client is an administrator.
type Server struct {
	Address string // http://127.0.0.1:PORT
	Client  *vaultapi.Client

	t *testing.T
}

// Start runs the program that AMBIT_TEST_VAULT names, until the test ends.
func Start(t *testing.T) *Server {
	t.Helper()
	program := os.Getenv("AMBIT_TEST_VAULT")
	if program == "" {
		t.Fatal("this test needs a real Vault and AMBIT_TEST_VAULT is not set: run `make unit`, which builds one; by hand: AMBIT_TEST_VAULT=$(cd lab && go run ./cmd/labbuild vault)")
	}
	cmd := exec.Command(program)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	lines := bufio.NewScanner(out)
	var said []string
	for len(said) < 2 && lines.Scan() {
		said = append(said, lines.Text())
	}
	if len(said) < 2 {
		t.Fatal("Vault did not start")
	}
	return At(t, said[0], said[1])
}

// At is a Vault that runs elsewhere, and its root token.
func At(t *testing.T, address, token string) *Server {
	t.Helper()
	c, err := vaultapi.NewClient(&vaultapi.Config{Address: address})
	if err != nil {
		t.Fatal(err)
	}
	c.SetToken(token)
	return &Server{Address: address, Client: c, t: t}
}

// Post writes to a path, and returns the data of the answer.
func (v *Server) Post(path string, data map[string]any) map[string]any {
	v.t.Helper()
	s, err := v.Client.Logical().Write(path, data)
	if err != nil {
		v.t.Fatal(err)
	}
	if s == nil {
		return nil
	}
	return s.Data
}

// Get reads a path.
func (v *Server) Get(path string) map[string]any {
	v.t.Helper()
	s, err := v.Client.Logical().Read(path)
	if err != nil || s == nil {
		v.t.Fatalf("%s: %v, %v", path, s, err)
	}
	return s.Data
}

// Mount mounts an empty PKI engine.
func (v *Server) Mount(path string) {
	v.t.Helper()
	v.Post("sys/mounts/"+path, map[string]any{"type": "pki", "config": map[string]any{"max_lease_ttl": "87600h"}})
}

// Root mounts a PKI engine with a root, and returns its issuer's ID.
func (v *Server) Root(mount, name string) string {
	v.t.Helper()
	v.Mount(mount)
	return fmt.Sprint(v.Post(mount+"/root/generate/internal", map[string]any{"common_name": name, "ttl": "87000h", "not_before_duration": "1h"})["issuer_id"])
}

// Intermediate mounts a PKI engine below another one; whole: it knows the root too.
func (v *Server) Intermediate(mount, below string, whole bool) {
	v.t.Helper()
	v.Mount(mount)
	csr := v.Post(mount+"/intermediate/generate/internal", map[string]any{"common_name": mount})["csr"]
	signed := v.Post(below+"/root/sign-intermediate", map[string]any{"csr": csr, "common_name": mount, "ttl": "80000h", "not_before_duration": "40m"})
	bundle := fmt.Sprint(signed["certificate"])
	if whole {
		bundle += "\n" + fmt.Sprint(signed["issuing_ca"])
	}
	v.Post(mount+"/intermediate/set-signed", map[string]any{"certificate": bundle})
}

// Policy allows update on paths.
func (v *Server) Policy(name string, paths ...string) {
	v.t.Helper()
	var rules []string
	for _, p := range paths {
		rules = append(rules, fmt.Sprintf(`path %q { capabilities = ["update"] }`, p))
	}
	v.Post("sys/policies/acl/"+name, map[string]any{"policy": strings.Join(rules, "\n")})
}

// Token may update paths.
func (v *Server) Token(paths ...string) string {
	v.t.Helper()
	name := fmt.Sprintf("p%d", time.Now().UnixNano())
	v.Policy(name, paths...)
	s, err := v.Client.Auth().Token().Create(&vaultapi.TokenCreateRequest{Policies: []string{name}})
	if err != nil {
		v.t.Fatal(err)
	}
	return s.Auth.ClientToken
}
