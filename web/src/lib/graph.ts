// What the server sends in columns, as boxes and edges.
import type { Columns, Sparse } from './types'

export interface Node { id: string; cluster: string; namespace: string; service: string; x: number; y: number; rate: number | null; errors: number | null; p99: number | null; opened: number | null; denied: number | null; stale: boolean; hops: number; copies: number }
export interface GraphEdge {
  id: string; from: Node; to: Node; flags: number; rate: number | null; errors: number | null; p50: number | null; p95: number | null; p99: number | null; opened: number | null; bytes: number | null
  denied: number; network: number | null; failed: number; rows: number; age: number
}
export interface Graph { nodes: Node[]; edges: GraphEdge[] }

export const inferred = 1, staleEdge = 2, denied = 4, l4Only = 8, mtls = 16, plainText = 32, unknownEnd = 64

const escape = (s: string) => s.replaceAll('%', '%25').replaceAll('/', '%2F').replaceAll('~', '%7E')

export function sparse(s: Sparse | null | undefined): Map<number, number> {
  const out = new Map<number, number>()
  let i = -1
  s?.skip?.forEach((skip, k) => {
    i += skip
    const v = s.v?.[k]
    if (v != null) out.set(i, v)
  })
  return out
}

export function graphOf(c: Columns): Graph {
  const name = (i: number | undefined) => (i == null || i < 0 ? '' : (c.names[i] ?? ''))
  const n = c.nodes
  const nodes: Node[] = (n.cluster ?? []).map((_, i) => {
    const cluster = name(n.cluster?.[i]), namespace = name(n.namespace?.[i]), service = name(n.service?.[i])
    const id = [cluster, ...(namespace || service ? [namespace] : []), ...(service ? [service] : [])].map(escape).join('/')
    return {
      id, cluster, namespace, service, x: n.x?.[i] ?? 0, y: n.y?.[i] ?? 0, rate: n.rate[i] ?? null, errors: n.errors[i] ?? null, p99: n.p99[i] ?? null, opened: n.opened[i] ?? null, denied: n.denied[i] ?? null,
      stale: n.stale?.[i] === 1, hops: n.hops?.[i] ?? 0, copies: n.copies?.[i] ?? 0,
    }
  })
  const e = c.edges
  const refused = sparse(e.denied), network = sparse(e.network), failed = sparse(e.failed), rows = sparse(e.rows)
  const edges = (e.from ?? []).flatMap((f, i): GraphEdge[] => {
    const from = nodes[f], to = nodes[e.to?.[i] ?? -1]
    if (!from || !to) return []
    return [{
      id: from.id + '~' + to.id, from, to, flags: e.flags[i] ?? 0, rate: e.rate[i] ?? null, errors: e.errors[i] ?? null, p50: e.p50[i] ?? null, p95: e.p95[i] ?? null, p99: e.p99[i] ?? null,
      opened: e.opened[i] ?? null, bytes: e.bytes[i] ?? null, denied: refused.get(i) ?? 0, network: network.get(i) ?? null, failed: failed.get(i) ?? 0, rows: rows.get(i) ?? 1, age: e.age[i] ?? 0,
    }]
  })
  return { nodes, edges }
}
