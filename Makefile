# Ambit. `make lab` brings real clusters up on this machine; `make test` runs everything. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION  ?= 2.12.0
LDFLAGS  := -s -w -X ambitmesh.dev/ambit/internal/version.Version=$(VERSION)
# golang.org/x/net/trace brings html/template, which switches dead-code elimination off: 5 MB more resident in each agent.
TAGS     := grpcnotrace
BIN      := $(CURDIR)/bin
TOOLS    := $(BIN)/tools
LAB      := $(BIN)/lab
STATE    ?= $(CURDIR)/.lab
# Modules of this repository, each with its own go.mod, so that the product's stays lean.
MODULES  := . lab lab/kube lab/istio lab/vault lab/certmanager tools
# LAB_CLUSTERS=n is the number of workload clusters (default 4, the last one unregistered).
LAB_UP   := --state $(STATE) --trust policy --traffic $(if $(LAB_CLUSTERS),--clusters $(LAB_CLUSTERS)) $(LAB_FLAGS)
export CGO_ENABLED := 0
GOFLAGS ?= -buildvcs=false
export GOFLAGS

.PHONY: help
help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

## ---- try it -------------------------------------------------------------------------------------------------------

.PHONY: lab lab-down lab-status build
lab: build ## bring the lab up: a management cluster and workload clusters with real API servers and real istiods
	@$(LAB) up $(LAB_UP)

lab-down: $(LAB) ## take the lab down; leaves nothing behind but the cache of built binaries
	@$(LAB) down --state $(STATE)

lab-status: $(LAB) ## health and memory of every process of the lab
	@$(LAB) status --state $(STATE)

.PHONY: $(LAB)
$(LAB):
	@cd lab && go build -trimpath -o $(LAB) ./cmd/lab

build: $(LAB) ## build the programs into bin/
	@go build -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/...

## ---- check it -----------------------------------------------------------------------------------------------------

.PHONY: web pictures ui-test
.PHONY: test unit lab-test e2e e2e-long bench lint verify golden fuzz
test: ## everything: verify, unit, lab and end-to-end tests, side by side where they don't disturb each other
	@hack/prerequisites.sh
	@hack/test.sh

unit: assets counterparts ## the product's own tests, on a real API server where they need one
	@KUBEBUILDER_ASSETS=$$($(LABBUILD) assets) AMBIT_TEST_VAULT=$$($(LABBUILD) vault) AMBIT_TEST_CERTMANAGER=$$($(LABBUILD) certmanager) AMBIT_TEST_MOTO=$$(hack/moto.sh) go test ./api/... ./charts/... ./cmd/... ./internal/... ./test/kubetest/...

LABBUILD := $(BIN)/labbuild
.PHONY: $(LABBUILD) assets counterparts lab-binaries
$(LABBUILD):
	@cd lab && go build -trimpath -o $(LABBUILD) ./cmd/labbuild
assets: $(LABBUILD) ## kube-apiserver, etcd and kubectl, built from Go modules once
	@$(LABBUILD) assets >/dev/null
counterparts: $(LABBUILD) ## what only tests run, built from Go modules once: a Vault server, cert-manager's controllers
	@$(LABBUILD) vault >/dev/null
	@$(LABBUILD) certmanager >/dev/null
lab-binaries: $(LABBUILD) ## everything the lab runs, built from Go modules once
	@$(LABBUILD) all >/dev/null

lab-test: lab-binaries ## the lab's own tests
	@cd lab && go test -count=1 ./...
	@cd lab/kube && go vet ./...
	@cd lab/vault && go vet ./...
	@cd lab/certmanager && go vet ./...
	@cd lab/istio && go test -count=1 ./...

e2e: build lab-binaries counterparts ## numbered scenarios against the whole lab
	@go test -count=1 -timeout 30m -p $$(( $$(nproc) < 4 ? 1 : 2 )) ./test/e2e/...

e2e-long: build lab-binaries ## root rotations with laggards, restarts, rollbacks from each phase: half an hour
	@AMBIT_E2E_LONG=1 go test -count=1 -timeout 80m -v -run TestLong ./test/e2e/...

bench: build lab-binaries ## figures: enrolment, register to Connected, memory, status writes
	@hack/bench.sh

ui-test: build ## the UI in a real browser (Chromium, playwright-core, axe): every page, both themes, keyboard only
	@cd test/ui && npm ci --no-fund --no-audit --silent && npm test

golden: ## rewrite golden files from what the code does now
	@UPDATE=1 go test ./internal/translate/... ./charts/...

fuzz: ## every fuzz target for FUZZTIME (default 20s) each
	@hack/fuzz.sh $${FUZZTIME:-20s}

## ---- keep it ------------------------------------------------------------------------------------------------------

.PHONY: tools generate tidy vuln
tools: ## build the pinned tools
	@cd tools && go build -trimpath -o $(TOOLS)/ github.com/golangci/golangci-lint/v2/cmd/golangci-lint golang.org/x/vuln/cmd/govulncheck \
	  google.golang.org/grpc/cmd/protoc-gen-go-grpc google.golang.org/protobuf/cmd/protoc-gen-go \
	  sigs.k8s.io/controller-tools/cmd/controller-gen ./protogen

generate: tools ## regenerate Go from .proto, deepcopy code and CRDs
	@$(TOOLS)/protogen api $(TOOLS)/protoc-gen-go $(TOOLS)/protoc-gen-go-grpc
	@$(TOOLS)/controller-gen object paths=./api/...
	@hack/crds.sh $(TOOLS)/controller-gen

lint: tools ## golangci-lint over every module
	@hack/lint.sh $(TOOLS)/golangci-lint

web: ## build the web application into internal/ui/dist, which is committed
	@cd web && npm ci --no-fund --no-audit --silent && npm run build

pictures: build ## pictures of the UI for the documentation
	@cd test/ui && npm ci --no-fund --no-audit --silent && AMBIT_UI_PICTURES=$(CURDIR)/docs/ui npm test

tidy: ## go mod tidy everywhere
	@for m in $(MODULES); do (cd $$m && go mod tidy) || exit 1; done

verify: ## generated code, CRDs and go.mod files are up to date, and lint is clean
	@hack/verify.sh

vuln: tools ## known vulnerabilities in what ships
	@$(TOOLS)/govulncheck ./cmd/...
