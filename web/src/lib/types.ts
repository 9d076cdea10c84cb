// What the server's API answers: internal/ui and the status types of api/.

export type Severity = 'critical' | 'warning' | 'note'

export interface Change { n: number; at: string; kind: string; text: string; by?: string; object?: string }
export interface Problem { severity: Severity; what: string; text: string; since?: string; page: string; suspect?: Change }
export interface Strip { name: string; connection: string; heartbeat?: string; stale: boolean }
export interface Link { from: string; to: string; rtt: number | null; min?: number; max?: number; loss: number; sent: number; at: string; why?: string }
export interface Now {
  at: string; verdict: string; healthy: boolean; problems: Problem[]; more?: number; clusters: Strip[]; changes: Change[]
  expiry?: { what: string; until: string }; links?: Link[]; rotation?: string; telemetry: boolean; unknown?: string[]
}
export interface About { version: string; demo?: boolean; telemetry: boolean; auditKept: boolean }

export interface KubeObject { namespace: string; name: string; labels?: Record<string, string>; created: string; generation?: number; deleting?: boolean }
export interface Condition { type: string; status: string; reason?: string; message?: string; lastTransitionTime?: string }
export interface CACertificate { fingerprint: string; generation?: number; subject?: string; issuer?: string; serial?: string; key?: string; notBefore?: string; notAfter?: string }
export interface Verifiers { kind: string; total: number; trusting: number; presenting: number; unknown?: number; leafUntil?: string; behind?: string[] }
export interface CAStatus {
  rotation?: string; rotatedAt?: string; phase?: string; message?: string; policy?: string; generation?: number; owner?: string; intermediate?: CACertificate; roots?: CACertificate[]
  lastProbe?: string; istiods?: { pod: string; version?: string; multiRoot?: boolean; current: boolean; problem?: string }[]; verifiers?: Verifiers[]; problems?: string[]
  revocation?: { state: string; message?: string; verifiers: number; honouring: number; notHonoured?: string[] }
}
export interface Peer { cluster: string; reason: string; address?: string; reachable?: string; roundTrip?: string; message?: string }
export interface Cluster extends KubeObject {
  status: {
    conditions?: Condition[]; connection?: string; agentVersion?: string; lastHeartbeat?: string; trustDomain?: string; registeredBy?: string; registeredAt?: string; clusterUID?: string
    istioVersion?: string; network?: string; clockSkew?: string; peers?: Peer[]; caStatus?: CAStatus
  }
}
export interface TrustPolicy extends KubeObject {
  status: {
    state?: string; message?: string; phase?: string; conditions?: Condition[]
    roots?: { generation?: number; role: string; fingerprint: string; subject?: string; issuer?: string; notAfter?: string }[]
    clusters?: { name: string; phase?: string; state?: string; message?: string; signer?: string; roots?: string[]; until?: string }[]
    revoked?: { cluster: string; subject?: string; serial: string; notAfter?: string; revokedAt?: string; by?: string; reason?: string; problem?: string }[]
  }
}
export interface Trust { at: string; policies: TrustPolicy[]; clusters: Cluster[] }
export interface PolicyCluster {
  cluster: string; state: string; message?: string; objects?: string[]; widened?: string[]
  lastDrift?: { object: string; manager?: string; at?: string; what?: string; corrected?: boolean }
  override?: { name: string; by?: string; reason?: string; until: string }
}
export interface Policy extends KubeObject {
  spec?: unknown
  status: { conditions?: Condition[]; inForce?: string; clusters?: PolicyCluster[]; allowedServiceAccounts?: string[]; workspace?: string; changedBy?: string; numAllowedServiceAccounts?: number }
}
export interface List<T> { at: string; items: T[] }

export interface AuditRecord {
  at: string; act: string; user?: string; groups?: string[]; manager?: string; source?: string; cluster?: string; operation?: string; object?: string; uid?: string; dryRun?: boolean
  diff?: { path: string; old?: unknown; new?: unknown }[]; policy?: string; detail?: string
  certificate?: { serial?: string; subject?: string; issuer?: string; fingerprint?: string; notAfter?: string }
  membership?: { clusterUID?: string; trustDomain?: string; permissions?: string[]; agentVersion?: string }
}
export interface Audit { head: string; records: AuditRecord[]; places: number[]; more: boolean }

export interface Sparse { skip: number[] | null; v: (number | null)[] | null }
export interface Columns {
  at: number; generation: number; level: string; focus?: string; historic?: boolean; hidden?: number; names: string[]
  nodes: { cluster: number[] | null; namespace: number[] | null; service: number[] | null; x: number[] | null; y: number[] | null; rate: (number | null)[]; errors: (number | null)[]; p99: (number | null)[]; opened: (number | null)[]; denied: (number | null)[]; stale: number[] | null; hops?: number[]; copies?: number[] }
  edges: {
    from: number[] | null; to: number[] | null; flags: number[]; rate: (number | null)[]; errors: (number | null)[]; clientErrors: (number | null)[]; p50: (number | null)[]; p95: (number | null)[]; p99: (number | null)[]
    opened: (number | null)[]; bytes: (number | null)[]; denied: Sparse; network: Sparse; failed: Sparse; rows: Sparse; age: number[]
  }
  boxes?: { cluster: string; namespace?: string; x: number; y: number; w: number; h: number }[]
  clusters: ClusterState[]; links?: Link[]
}
export interface ClusterState {
  name: string; lastReport: string; stale: boolean; staleSince?: string; edges: number; reports: number; lost: number; refused: number
  caps?: { what?: string; [key: string]: unknown }[]; scrapes?: Record<string, unknown>[]; version?: string
}
export interface Telemetry { at: string; clusters: ClusterState[]; links: Link[]; history: string[]; edges: number; l4Only: number; silent: string[] }

export interface Quantile { value: number; low: number; high: number }
export interface Latency { p50: Quantile; p95: Quantile; p99: Quantile; mean: number; buckets: number[]; by: string; cluster: string; shared?: number }
export interface Part { ms: number; by: string }
export interface Party { cluster: string; namespace?: string; service?: string }
export interface Edge {
  from: Party; to: Party; protocol: string; rates: { success: number; clientError: number; serverError: number; noResponse: number }
  tcp: { opened: number; closed: number; failed: number; sent: number; received: number }
  server?: Latency; client?: Latency; split: { client?: Part; network?: Part; server?: Part }
  failures?: { flag: string; rate: number }[]; denied?: number; decision?: { policy?: string; accessPolicy?: string; candidates?: string[]; text: string }
  mtls?: string; fromPrincipals?: string[]; toPrincipals?: string[]; codes?: { code: string; rate: number }[]
  sources: { by: string; cluster: string; at: string; stale?: boolean }[]; inferred?: boolean; candidates?: string[]; firstSeen: string; lastSeen: string; stale?: boolean; hint?: string
}

export interface TraceSummary { id: string; start: string; duration: number; service: string; name: string; root: boolean; spans: number; errors: number; clusters: string[]; services: string[] }
export interface Placed {
  id: string; parent?: string; cluster: string; namespace?: string; service: string; name: string; kind: string; start: string; duration: number; error?: boolean; status?: string
  attributes?: { k: string; v: string }[]; at: number; shift?: number; depth: number; parentIndex: number; children?: number; missing?: string; warning?: string; critical?: number
}
export interface Trace {
  id: string; start: string; duration: number; raw?: boolean; spans: Placed[]; transits?: { parent: number; child: number; out: number; back: number; path: string; rtt?: number }[]
  clusters: { cluster: string; offset: number; error: number; known: boolean; spans: number; shifted: number }[]; errors?: number; truncated?: number; notes?: string[]
}

export interface Segment extends KubeObject {
  spec: { hosts?: string[]; selector: { namespace?: string; labels?: Record<string, string> }; ports?: { number: number; protocol?: string }[] }
  status: { conditions?: Condition[]; clusters?: { name: string; services?: string[]; labelled: boolean; programmed: boolean; endpoints?: number; vip?: string; message?: string }[] }
}
