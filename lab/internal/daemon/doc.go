// Package daemon is the process that holds a running lab.
//
// `lab up` starts it (Start) as process 1 of new pid, network, mount and uts
// namespaces, with listening sockets of the host handed in. In go the state
// directory and those sockets; Run brings up etcd, control planes, nodes and
// add-ons, forwards connections, answers the control socket, and at the end
// takes everything down in order. Out come running clusters, progress Events,
// and a Status on request (Client is the other side of the socket).
//
// Being process 1 of its pid namespace, its end is the end of every process of
// the lab, however it ends: the kernel kills the rest. That is why nothing
// here sets PDEATHSIG, and why it has to reap orphans.
//
// It must not know how Istio is installed (package addons), how Pods run
// (package node), or how control planes are configured (package control), and
// it must never send traffic into the host's network: it can't, it is not there.
package daemon
