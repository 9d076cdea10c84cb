// Every page and the state of each, which is in the URL.
import { createRootRoute, createRoute, createRouter } from '@tanstack/react-router'
import { AuditPage } from './pages/audit'
import { ClusterPage, ClustersPage } from './pages/clusters'
import { MapPage } from './pages/map'
import { NowPage } from './pages/now'
import { PoliciesPage, PolicyPage } from './pages/policies'
import { SegmentsPage } from './pages/segments'
import { ServicesPage } from './pages/services'
import { TelemetryPage } from './pages/telemetry'
import { TracePage, TracesPage } from './pages/traces'
import { TrustPage } from './pages/trust'
import { NotFound, Shell } from './shell'

const whole = (v: unknown) => (v !== undefined && v !== '' && Number.isInteger(Number(v)) ? Number(v) : undefined)
const text = (v: unknown) => (typeof v === 'string' && v !== '' ? v : undefined)

export interface Filtered { q?: string }
const filtered = (s: Record<string, unknown>): Filtered => ({ q: text(s.q) })

export interface MapSearch extends Filtered { level?: string; focus?: string; edge?: string; at?: string; view?: string; namespace?: string; cluster?: string }
const number = (v: unknown) => (whole(v) === undefined ? undefined : String(whole(v)))

export interface TracesSearch extends Filtered { service?: string; cluster?: string; errors?: string; slower?: string }
export interface AuditSearch { name?: string; cluster?: string; user?: string; act?: string; object?: string; from?: string; to?: string; before?: number; n?: number }

const root = createRootRoute({ component: Shell, notFoundComponent: NotFound })
const at = <P extends string, S extends object>(path: P, component: () => React.ReactNode, validateSearch: (s: Record<string, unknown>) => S) =>
  createRoute({ getParentRoute: () => root, path, component, validateSearch })

const tree = root.addChildren([
  at('/', NowPage, () => ({})),
  at('/map', MapPage, (s): MapSearch => ({ ...filtered(s), level: text(s.level), focus: text(s.focus), edge: text(s.edge), at: text(s.at), view: text(s.view), namespace: text(s.namespace), cluster: text(s.cluster) })),
  at('/services', ServicesPage, filtered),
  at('/clusters', ClustersPage, filtered),
  at('/clusters/$name', ClusterPage, () => ({})),
  at('/trust', TrustPage, filtered),
  at('/policies', PoliciesPage, filtered),
  at('/policies/$namespace/$name', PolicyPage, () => ({})),
  at('/segments', SegmentsPage, filtered),
  at('/audit', AuditPage, (s): AuditSearch => ({
    name: text(s.name), cluster: text(s.cluster), user: text(s.user), act: text(s.act), object: text(s.object), from: text(s.from), to: text(s.to),
    before: whole(s.before), n: whole(s.n),
  })),
  at('/traces', TracesPage, (s): TracesSearch => ({ ...filtered(s), service: text(s.service), cluster: text(s.cluster), errors: text(s.errors), slower: number(s.slower) })),
  at('/traces/$id', TracePage, (s): { raw?: string } => ({ raw: text(s.raw) })),
  at('/telemetry', TelemetryPage, filtered),
])

export const router = createRouter({ routeTree: tree, defaultPreload: false })

declare module '@tanstack/react-router' {
  interface Register { router: typeof router }
}
