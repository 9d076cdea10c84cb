import { Link, useNavigate, useSearch } from '@tanstack/react-router'
import { useApi } from '../lib/api'
import { graphOf } from '../lib/graph'
import { type Column, Filter, State, Table, Waiting, matches } from '../lib/parts'
import { ms, percent, rate } from '../lib/text'
import type { Node } from '../lib/graph'
import type { Columns } from '../lib/types'

export function ServicesPage() {
  const navigate = useNavigate()
  const { q } = useSearch({ from: '/services' })
  const { data, error, isLoading } = useApi<Columns>('topology?level=service')
  const g = data ? graphOf(data) : undefined
  const rows = (g?.nodes ?? []).filter((n) => n.service && matches(q, n.service, n.namespace, n.cluster))
  const columns: Column<Node>[] = [
    { key: 'service', title: 'Service', cell: (n) => <Link to="/map" search={{ level: 'neighbourhood', focus: n.id }}>{n.service}</Link>, sort: (n) => n.service },
    { key: 'namespace', title: 'Namespace', cell: (n) => n.namespace, sort: (n) => n.namespace },
    { key: 'cluster', title: 'Cluster', cell: (n) => <Link to="/clusters/$name" params={{ name: n.cluster }}>{n.cluster}</Link>, sort: (n) => n.cluster },
    { key: 'copies', title: 'Also in', cell: (n) => (n.copies ? `${n.copies} more` : ''), sort: (n) => n.copies, numeric: true },
    { key: 'rate', title: 'Requests', cell: (n) => (n.rate ? rate(n.rate) : n.opened ? `${rate(n.opened)} connections` : 'none'), sort: (n) => n.rate ?? 0, numeric: true },
    { key: 'errors', title: 'Errors', cell: (n) => (n.rate ? <State of={(n.errors ?? 0) >= 0.05 ? 'critical' : (n.errors ?? 0) > 0.01 ? 'warning' : 'ok'} text={percent(n.errors)} /> : <span className="dim">L4 only</span>), sort: (n) => n.errors ?? -1, numeric: true },
    { key: 'p99', title: 'p99', cell: (n) => (n.p99 == null ? <span className="dim">not measured</span> : `~${ms(n.p99)}`), sort: (n) => n.p99 ?? -1, numeric: true },
    { key: 'denied', title: 'Denied', cell: (n) => (n.denied ? <State of="warning" text={rate(n.denied)} /> : ''), sort: (n) => n.denied ?? 0, numeric: true },
  ]
  return (
    <section>
      <h1>Services</h1>
      <Filter value={q ?? ''} set={(v) => void navigate({ to: '/services', search: { q: v || undefined }, replace: true })} what="services" />
      <Waiting error={error} what="services" loading={isLoading} />
      {g && <Table label="Services" rows={rows} columns={columns} id={(n) => n.id} stale={(n) => n.stale} open={(n) => void navigate({ to: '/map', search: { level: 'neighbourhood', focus: n.id } })} />}
    </section>
  )
}
