// Command vault is a real Vault server for tests: its core with the secrets engine pki and the methods kubernetes and approle, in memory.
//
// In: an address. Out: Vault's HTTP API there, unsealed, and on standard output two lines: the address and a root token. It must not be shipped and nothing of the product may
// import it: Vault is licensed under BUSL-1.1.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	log "github.com/hashicorp/go-hclog"
	kubernetes "github.com/hashicorp/vault-plugin-auth-kubernetes"
	"github.com/hashicorp/vault/builtin/credential/approle"
	"github.com/hashicorp/vault/builtin/logical/pki"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/internalshared/configutil"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical/inmem"
	"github.com/hashicorp/vault/vault"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to serve HTTP on")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *listen)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vault:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, listen string) error {
	core, token, err := start(ctx)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	s := &http.Server{Handler: vaulthttp.Handler.Handler(&vault.HandlerProperties{Core: core, ListenerConfig: &configutil.Listener{}}), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	fmt.Fprintf(os.Stdout, "http://%s\n%s\n", l.Addr(), token)
	select {
	case err = <-done:
	case <-ctx.Done():
		err = s.Close()
	}
	_ = core.Shutdown()
	return err
}

// start makes an unsealed core and a root token.
func start(ctx context.Context) (*vault.Core, string, error) {
	logger := log.New(&log.LoggerOptions{Name: "vault", Level: log.Warn, Output: os.Stderr})
	store, err := inmem.NewInmem(nil, logger)
	if err != nil {
		return nil, "", err
	}
	core, err := vault.NewCore(&vault.CoreConfig{
		Physical: store, StorageType: "inmem", DisableMlock: true, Logger: logger, BuiltinRegistry: builtin{},
		LogicalBackends:    map[string]logical.Factory{"pki": pki.Factory},
		CredentialBackends: map[string]logical.Factory{"kubernetes": kubernetes.Factory, "approle": approle.Factory},
	})
	if err != nil {
		return nil, "", err
	}
	init, err := core.Initialize(ctx, &vault.InitParams{
		BarrierConfig:  &vault.SealConfig{SecretShares: 1, SecretThreshold: 1},
		RecoveryConfig: &vault.SealConfig{SecretShares: 1, SecretThreshold: 1},
	})
	if err != nil {
		return nil, "", err
	}
	if ok, err := core.Unseal(init.SecretShares[0]); err != nil || !ok {
		return nil, "", fmt.Errorf("unseal (unsealed: %t): %w", ok, err)
	}
	return core, init.RootToken, nil
}

// builtin says to Vault that it has no plugins besides those it is given.
type builtin struct{}

func (builtin) Contains(string, consts.PluginType) bool { return false }
func (builtin) Get(string, consts.PluginType) (func() (any, error), bool) {
	return nil, false
}
func (builtin) Keys(consts.PluginType) []string { return nil }
func (builtin) DeprecationStatus(string, consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Unknown, false
}
func (builtin) IsBuiltinEntPlugin(string, consts.PluginType) bool { return false }
