package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestFlags(t *testing.T) {
	run := func(args ...string) (string, error) {
		var out bytes.Buffer
		c := command(&out, func(string) string { return "" })
		c.SetOut(&out)
		c.SetErr(&out)
		c.SetArgs(args)
		err := c.ExecuteContext(t.Context())
		return out.String(), err
	}
	if out, err := run("--help"); err != nil || !strings.Contains(out, "Examples:") || !strings.Contains(out, "--register-cluster") {
		t.Errorf("--help: %v\n%s", err, out)
	}
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"misspelt flag":     {[]string{"--relay-adress=:1"}, "--relay-adress"},
		"argument":          {[]string{"serve"}, "serve"},
		"log format":        {[]string{"--log-format=xml"}, "--log-format"},
		"log level":         {[]string{"--log-level=loud"}, "--log-level"},
		"bad configuration": {[]string{"--cluster=prod_eu", "--relay-address=9900"}, "--relay-address"},
		"not in a Pod":      {[]string{"--metrics-address=off"}, "--kubeconfig"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := run(tc.args...); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v: want an error that names %s", err, tc.want)
			}
		})
	}
}
