package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// TestCalls has one application call another and checks the whole answer,
// including that the trace goes on.
func TestCalls(t *testing.T) {
	var trace string
	details := newApp("details-v1-abc-def", func(string) string { return "" })
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		trace = r.Header.Get("traceparent")
		details.ServeHTTP(w, r)
	}))
	defer backend.Close()
	vars := map[string]string{"SERVICE": "productpage", "CLUSTER": "cluster-1", "POD": "p-1", "CALLS": backend.URL + "/x http://127.0.0.1:1/"}
	front := httptest.NewServer(newApp("host", func(k string) string { return vars[k] }))
	defer front.Close()

	req, err := http.NewRequest(http.MethodGet, front.URL+"/productpage", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("traceparent", "00-a-b-01")
	var got answer
	fetch(t, req, &got)
	var nested answer
	if err := json.Unmarshal(got.Calls[0].Body, &nested); err != nil {
		t.Fatal(err)
	}
	want := answer{Service: "productpage", Cluster: "cluster-1", Pod: "p-1", Path: "/productpage", Calls: []called{
		{URL: backend.URL + "/x", Status: 200}, {URL: "http://127.0.0.1:1/"},
	}}
	if d := cmp.Diff(want, got, cmpopts.IgnoreFields(called{}, "Millis", "Body", "Error")); d != "" {
		t.Error(d)
	}
	if got.Calls[1].Error == "" {
		t.Error("the failed call has no error")
	}
	if d := cmp.Diff(answer{Service: "details", Pod: "details-v1-abc-def", Path: "/x"}, nested); d != "" {
		t.Error(d)
	}
	if trace != "00-a-b-01" {
		t.Errorf("trace header %q was not passed on", trace)
	}
}

// TestCall drives a call from outside, to a server that does not speak JSON.
func TestCall(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, "plain")
	}))
	defer backend.Close()
	front := httptest.NewServer(newApp("host", func(string) string { return "" }))
	defer front.Close()
	req, err := http.NewRequest(http.MethodGet, front.URL+"/call?url="+url.QueryEscape(backend.URL), nil)
	if err != nil {
		t.Fatal(err)
	}
	var got called
	fetch(t, req, &got)
	want := called{URL: backend.URL, Status: http.StatusTeapot, Body: json.RawMessage(`"plain"`)}
	if d := cmp.Diff(want, got, cmpopts.IgnoreFields(called{}, "Millis")); d != "" {
		t.Error(d)
	}
}

func fetch(t *testing.T, req *http.Request, into any) {
	t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		t.Fatal(err)
	}
}
