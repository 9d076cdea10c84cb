// Package probe finds out what a cluster's certificate authorities and verifiers present and trust, as opposed to what was written for them.
//
// In: a client of the cluster's API server, a token of our own service account, and what is directed at present. Out: a mesh.TrustObservation per round:
//   - the CSR probe asks every istiod replica, each at its own address, for a certificate, and so learns its signer, its chain and its roots (csr.go);
//   - the handshake probe opens TLS to port 15008 of one Pod per (node, service account) that ztunnel captures, and of every waypoint and east-west gateway. It shows
//     no certificate: the server's leaf and the CA names in its CertificateRequest say enough (handshake.go);
//   - root ConfigMaps and the caBundles of istiod's webhooks are watched (world.go).
//
// It is quiet while all is as directed, and looks often while it is not. It must not write to the cluster, must not send its token to a server whose certificate does not
// verify, and must not decide what an observation means: an endpoint that can't be probed is reported as such, never left out.
package probe
