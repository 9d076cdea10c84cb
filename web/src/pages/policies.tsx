import { Link, useNavigate, useParams, useSearch } from '@tanstack/react-router'
import { useApi } from '../lib/api'
import { Age, type Column, Command, Filter, State, Table, Waiting, matches } from '../lib/parts'
import type { List, Policy } from '../lib/types'

const worst = (p: Policy) => {
  const order = ['Rejected', 'Unenforceable', 'Drifted', 'Overridden', 'Pending', 'InForce']
  return (p.status.clusters ?? []).map((c) => c.state).sort((a, b) => order.indexOf(a) - order.indexOf(b))[0] ?? 'Pending'
}

export function PoliciesPage() {
  const navigate = useNavigate()
  const { q } = useSearch({ from: '/policies' })
  const { data, error, isLoading } = useApi<List<Policy>>('policies')
  const rows = (data?.items ?? []).filter((p) => matches(q, p.name, p.namespace, p.status.changedBy, p.status.workspace, worst(p), ...(p.status.allowedServiceAccounts ?? [])))
  const names = [...new Set(rows.flatMap((p) => (p.status.clusters ?? []).map((c) => c.cluster)))].sort()
  const columns: Column<Policy>[] = [
    { key: 'name', title: 'Policy', cell: (p) => <Link to="/policies/$namespace/$name" params={{ namespace: p.namespace, name: p.name }}>{p.namespace}/{p.name}</Link>, sort: (p) => p.namespace + '/' + p.name },
    { key: 'force', title: 'In force', cell: (p) => p.status.inForce ?? '', sort: (p) => p.status.inForce ?? '' },
    { key: 'worst', title: 'Worst', cell: (p) => <State of={worst(p)} />, sort: worst },
    ...(names.length <= 8 ? names.map((n): Column<Policy> => ({
      key: 'c-' + n, title: n,
      cell: (p) => {
        const c = p.status.clusters?.find((c) => c.cluster === n)
        return c ? <State of={c.state} title={c.message} /> : <span className="dim">not there</span>
      },
    })) : []),
    { key: 'by', title: 'Changed by', cell: (p) => p.status.changedBy ?? '', sort: (p) => p.status.changedBy ?? '' },
    { key: 'accounts', title: 'Allows', cell: (p) => p.status.numAllowedServiceAccounts ?? p.status.allowedServiceAccounts?.length ?? 0, sort: (p) => p.status.numAllowedServiceAccounts ?? 0, numeric: true },
  ]
  return (
    <section>
      <h1>Policies</h1>
      <Filter value={q ?? ''} set={(v) => void navigate({ to: '/policies', search: { q: v || undefined }, replace: true })} what="policies: name, state, service account, who changed it" />
      <Waiting error={error} what="policies" loading={isLoading} />
      {data?.items.length === 0 && <p>There is no AccessPolicy.</p>}
      {data && data.items.length > 0 && <Table label="Policies by cluster" rows={rows} columns={columns} id={(p) => p.namespace + '/' + p.name} open={(p) => void navigate({ to: '/policies/$namespace/$name', params: { namespace: p.namespace, name: p.name } })} />}
    </section>
  )
}

export function PolicyPage() {
  const { namespace, name } = useParams({ from: '/policies/$namespace/$name' })
  const { data, error, isLoading } = useApi<Policy>(`policies/${encodeURIComponent(namespace)}/${encodeURIComponent(name)}`)
  const s = data?.status
  return (
    <section>
      <h1>{namespace}/{name}</h1>
      <Waiting error={error} what={`policy ${namespace}/${name}`} loading={isLoading} />
      {data && s && (
        <>
          <p>In force in {s.inForce ?? 'no cluster yet'}; last changed by {s.changedBy ?? 'somebody not on record'}. <Link to="/audit" search={{ object: `AccessPolicy ${namespace}/${name}` }}>Every change</Link></p>
          <Table
            label="In each cluster" rows={s.clusters ?? []} id={(c) => c.cluster}
            columns={[
              { key: 'cluster', title: 'Cluster', cell: (c) => <Link to="/clusters/$name" params={{ name: c.cluster }}>{c.cluster}</Link>, sort: (c) => c.cluster },
              { key: 'state', title: 'State', cell: (c) => <State of={c.state} />, sort: (c) => c.state },
              { key: 'why', title: 'Why', cell: (c) => c.message ?? '' },
              { key: 'drift', title: 'Last drift', cell: (c) => (c.lastDrift ? <>{c.lastDrift.what} by {c.lastDrift.manager ?? 'somebody'} <Age at={c.lastDrift.at} />{c.lastDrift.corrected ? ', put back' : ''}</> : <span className="dim">none</span>) },
              { key: 'objects', title: 'Enforced by', cell: (c) => (c.objects ?? []).join(', ') },
              { key: 'widened', title: 'Widened by', cell: (c) => (c.widened ?? []).join('; ') },
            ]}
          />
          <div className="columns">
            <div>
              <h2>Who may call</h2>
              <ul>{(s.allowedServiceAccounts ?? []).map((a) => <li key={a}><code>{a}</code></li>)}</ul>
              {(s.allowedServiceAccounts ?? []).length === 0 && <p>Nobody that exists: an empty selection denies.</p>}
              <p>Can one call the other, and which rule decides?</p>
              <Command text={`meshctl policy can FROM TO --mgmt-context mgmt`} />
            </div>
            <div>
              <h2>Spec</h2>
              <pre tabIndex={0} aria-label="Spec">{JSON.stringify(data.spec, null, 2)}</pre>
            </div>
          </div>
        </>
      )}
    </section>
  )
}
