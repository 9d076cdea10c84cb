// Package relayv1 is the wire format of the relay, generated from relay.proto (make generate).
//
// In: relay.proto. Out: Go messages and gRPC stubs. It must only grow: see the rules at the head of relay.proto.
package relayv1
