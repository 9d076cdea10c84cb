package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// config says which control planes to run in this process. Each component gets
// its own command line, the same that the component would get as a process, so
// that moving a cluster to a process of its own changes nothing else.
type config struct {
	Clusters []clusterConfig `json:"clusters"`
}

// clusterConfig is one control plane.
type clusterConfig struct {
	Name string `json:"name"`
	// APIServer, ControllerManager and Scheduler are flags as in "--secure-port=6443".
	APIServer         []string `json:"apiserver"`
	ControllerManager []string `json:"controllerManager"`
	Scheduler         []string `json:"scheduler"`
}

func loadConfig(path string) (config, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return config{}, err
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	var c config
	if err := dec.Decode(&c); err != nil {
		return config{}, fmt.Errorf("read %s: %w", path, err)
	}
	return c, c.validate()
}

func (c config) validate() error {
	if len(c.Clusters) == 0 {
		return errors.New("no clusters in the configuration")
	}
	seen := map[string]bool{}
	for i, cl := range c.Clusters {
		if cl.Name == "" {
			return fmt.Errorf("clusters[%d]: no name", i)
		}
		if seen[cl.Name] {
			return fmt.Errorf("cluster %q: named twice", cl.Name)
		}
		seen[cl.Name] = true
		if len(cl.APIServer) == 0 {
			return fmt.Errorf("cluster %q: no flags for kube-apiserver", cl.Name)
		}
	}
	return nil
}
