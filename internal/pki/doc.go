// Package pki is the X.509 side of the product: keys, roots, intermediates, and whether a certificate is what it has to be.
//
// In: bytes, keys, and the time as an argument. Out: certificates, and refusals that name the exact reason. Everything that parses foreign bytes is bounded and has a
// fuzz target. It must not do I/O or read a clock; randomness is crypto/rand.
package pki
