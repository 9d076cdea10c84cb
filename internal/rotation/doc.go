// Package rotation carries out what internal/trust decides: for every RootTrustPolicy it gathers, decides, stores and acts.
//
// In: RootTrustPolicies and RotationRequests, what agents report of trust (Board), and certificate authorities (Issuer). Out: the engine's record and everything a
// reader wants to know in the policy's status, directives for agents (Board again), certificates of every cluster in a ConfigMap, audit records.
//
// The order is the point: a decision is stored in status, with optimistic concurrency, before anything of it is done; certificates are stored before they are handed
// out. So a server that dies anywhere goes on where it was. It must not decide anything about trust itself, holds no private key, and never lets a slow authority
// keep one cluster waiting for another.
package rotation
