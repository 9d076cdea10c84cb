import { Link, useNavigate, useSearch } from '@tanstack/react-router'
import { useApi } from '../lib/api'
import { Command, Filter, State, Table, Waiting, matches } from '../lib/parts'
import type { List, Segment } from '../lib/types'

export function SegmentsPage() {
  const navigate = useNavigate()
  const { q } = useSearch({ from: '/segments' })
  const { data, error, isLoading } = useApi<List<Segment>>('segments')
  const shown = (data?.items ?? []).filter((g) => matches(q, g.name, g.namespace, ...(g.spec.hosts ?? []), ...(g.status.clusters ?? []).map((c) => c.name)))
  return (
    <section>
      <h1>Segments</h1>
      <p className="dim">A Segment makes Services global: is its host reachable from everywhere?</p>
      <Filter value={q ?? ''} set={(v) => void navigate({ to: '/segments', search: { q: v || undefined }, replace: true })} what="segments: name, host, cluster" />
      <Waiting error={error} what="segments" loading={isLoading} />
      {data?.items.length === 0 && <p>There is no Segment. To make a Service global everywhere, apply one: <code>apiVersion: networking.solo.io/v2alpha1, kind: Segment</code>.</p>}
      {shown.map((g) => (
        <article key={g.namespace + '/' + g.name}>
          <h2>{g.namespace}/{g.name}</h2>
          <p>{(g.spec.hosts ?? []).map((h) => <code key={h}>{h} </code>)} for Services of <code>{g.spec.selector.namespace ?? 'its namespace'}</code> with {Object.entries(g.spec.selector.labels ?? {}).map(([k, v]) => <code key={k}>{k}={v} </code>)}</p>
          {(g.status.conditions ?? []).filter((c) => c.status === 'False').map((c) => <p key={c.type} className="error">{c.type}: {c.message}</p>)}
          <Table
            label={`Segment ${g.namespace}/${g.name} in each cluster`} rows={g.status.clusters ?? []} id={(c) => c.name}
            columns={[
              { key: 'name', title: 'Cluster', cell: (c) => <Link to="/clusters/$name" params={{ name: c.name }}>{c.name}</Link>, sort: (c) => c.name },
              { key: 'labelled', title: 'Labelled', cell: (c) => <State of={c.labelled ? 'ok' : 'warning'} text={c.labelled ? 'yes' : 'no'} /> },
              { key: 'programmed', title: 'Seen in istiod', cell: (c) => <State of={c.programmed ? 'ok' : 'warning'} text={c.programmed ? 'yes' : 'no'} />, sort: (c) => String(c.programmed) },
              { key: 'endpoints', title: 'Endpoints', cell: (c) => c.endpoints ?? 0, sort: (c) => c.endpoints ?? 0, numeric: true },
              { key: 'vip', title: 'Address', cell: (c) => <code>{c.vip}</code> },
              { key: 'services', title: 'Services', cell: (c) => (c.services ?? []).join(', ') },
              { key: 'why', title: 'Why not', cell: (c) => c.message ?? '' },
            ]}
          />
        </article>
      ))}
      {data && data.items.length > 0 && <Command text="kubectl --context mgmt get segments.networking.solo.io -A -o yaml" />}
    </section>
  )
}
