package server

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestConfigSaysEveryMistakeWithItsFlag(t *testing.T) {
	good := DefaultConfig()
	if err := good.Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	bad := DefaultConfig()
	bad.Namespace, bad.Cluster, bad.RegisterCluster = "", "prod_eu", "Prod"
	bad.BindAddress, bad.RelayAddress, bad.MetricsAddress, bad.WebhookAddress = "host:1", "9900", "off", "x"
	bad.LeaseDuration, bad.WarmGrace = time.Second, -1
	err := bad.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	var flags []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		flag, _, _ := strings.Cut(strings.TrimPrefix(line, "--"), ":")
		flags = append(flags, flag)
	}
	slices.Sort(flags)
	if diff := cmp.Diff([]string{"bind-address", "cluster", "lease-duration", "namespace", "register-cluster", "relay-address", "warm-grace", "webhook-address"}, flags); diff != "" {
		t.Errorf("%s\n%v", diff, err)
	}
}

func TestBindAddressIsForListenersWithoutHost(t *testing.T) {
	c := Config{BindAddress: "10.0.0.7"}
	for in, want := range map[string]string{":9900": "10.0.0.7:9900", "127.0.0.1:9900": "127.0.0.1:9900"} {
		if got := c.bind(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestFirstFailureStopsAllWithItsName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		stopped := false
		err := runAll(t.Context(), []task{
			{"ends early, which is fine", func(context.Context) error { return nil }},
			{"runs", func(ctx context.Context) error { <-ctx.Done(); stopped = true; return ctx.Err() }},
			{"relay", func(context.Context) error { time.Sleep(time.Minute); return broken }},
		})
		if !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "relay: ") || !stopped {
			t.Errorf("%v, others stopped: %v", err, stopped)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := runAll(ctx, []task{{"a", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}}); err != nil {
			t.Errorf("an ordered end is no failure: %v", err)
		}
	})
}

func TestEveryRetriesAndHearsTheBell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		start, b := time.Now(), newBell()
		var calls []time.Duration
		go func() {
			time.Sleep(7 * time.Second)
			b.ring()
			time.Sleep(2 * time.Minute)
			cancel()
		}()
		_ = every(ctx, b, time.Minute, discard(), "work", func(context.Context) error {
			calls = append(calls, time.Since(start))
			if len(calls) == 1 {
				return errors.New("not yet")
			}
			return nil
		})
		if diff := cmp.Diff([]time.Duration{0, 5 * time.Second, 7 * time.Second, 67 * time.Second, 127 * time.Second}, calls); diff != "" {
			t.Error(diff)
		}
	})
}
