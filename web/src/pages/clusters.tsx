import { Link, useNavigate, useParams, useSearch } from '@tanstack/react-router'
import { useApi } from '../lib/api'
import { Age, type Column, Command, Filter, State, Table, Waiting, matches, useNow } from '../lib/parts'
import { left, short, time } from '../lib/text'
import type { Cluster, List } from '../lib/types'

const stale = (c: Cluster) => c.status.connection !== 'Connected'
const bad = (c: Cluster) => (c.status.conditions ?? []).filter((x) => x.status === 'False' && x.type !== 'Connected')

export function ClustersPage() {
  const navigate = useNavigate()
  const now = useNow()
  const { q } = useSearch({ from: '/clusters' })
  const { data, error, isLoading } = useApi<List<Cluster>>('clusters')
  const columns: Column<Cluster>[] = [
    { key: 'name', title: 'Cluster', cell: (c) => <Link to="/clusters/$name" params={{ name: c.name }}>{c.name}</Link>, sort: (c) => c.name },
    { key: 'state', title: 'Status', cell: (c) => <State of={c.status.connection ?? 'Pending'} />, sort: (c) => c.status.connection ?? '' },
    { key: 'heartbeat', title: 'Last heartbeat', cell: (c) => <Age at={c.status.lastHeartbeat} />, sort: (c) => c.status.lastHeartbeat ?? '' },
    { key: 'trouble', title: 'Wrong', cell: (c) => (bad(c).length ? <State of="warning" text={bad(c).map((x) => x.type).join(', ')} title={bad(c).map((x) => x.message).join('\n')} /> : <span className="dim">nothing</span>), sort: (c) => -bad(c).length },
    { key: 'agent', title: 'Agent', cell: (c) => c.status.agentVersion ?? '', sort: (c) => c.status.agentVersion ?? '' },
    { key: 'istio', title: 'Istio', cell: (c) => c.status.istioVersion ?? '', sort: (c) => c.status.istioVersion ?? '' },
    { key: 'domain', title: 'Trust domain', cell: (c) => c.status.trustDomain ?? '', sort: (c) => c.status.trustDomain ?? '' },
    { key: 'expiry', title: 'Intermediate ends in', cell: (c) => left(c.status.caStatus?.intermediate?.notAfter, now), sort: (c) => c.status.caStatus?.intermediate?.notAfter ?? '' },
    { key: 'by', title: 'Registered by', cell: (c) => c.status.registeredBy ?? '', sort: (c) => c.status.registeredBy ?? '' },
    { key: 'at', title: 'Registered', cell: (c) => <Age at={c.status.registeredAt ?? c.created} />, sort: (c) => c.status.registeredAt ?? c.created },
  ]
  const rows = (data?.items ?? []).filter((c) => matches(q, c.name, c.status.connection, c.status.registeredBy, c.status.trustDomain, ...Object.entries(c.labels ?? {}).map(([k, v]) => `${k}=${v}`)))
  return (
    <section>
      <h1>Clusters</h1>
      <Filter value={q ?? ''} set={(v) => void navigate({ to: '/clusters', search: { q: v || undefined }, replace: true })} what="clusters" />
      <Waiting error={error} what="its clusters" loading={isLoading} />
      {data && data.items.length === 0 && <><p>No cluster is registered yet. To register one:</p><Command text="meshctl cluster register NAME --mgmt-context mgmt --remote-context CONTEXT" /></>}
      {data && data.items.length > 0 && <Table label="Clusters" rows={rows} columns={columns} id={(c) => c.name} stale={stale} open={(c) => void navigate({ to: '/clusters/$name', params: { name: c.name } })} />}
    </section>
  )
}

export function ClusterPage() {
  const { name } = useParams({ from: '/clusters/$name' })
  const now = useNow()
  const { data, error, isLoading } = useApi<Cluster>(`clusters/${encodeURIComponent(name)}?opened=1`)
  const s = data?.status
  const ca = s?.caStatus
  return (
    <section>
      <h1>{name} {s && <State of={s.connection ?? 'Pending'} />}</h1>
      <Waiting error={error} what={`cluster ${name}`} loading={isLoading} />
      {data && s && (
        <div className={stale(data) ? 'hatched' : undefined}>
          {stale(data) && <p className="error">Its agent is not connected: everything here is as of <Age at={s.lastHeartbeat} />. <Link to="/audit" search={{ cluster: name }}>What happened to it?</Link></p>}
          <div className="columns">
            <div>
              <h2>Membership</h2>
              <dl>
                <dt>Registered by</dt><dd>{s.registeredBy ?? 'not known'}</dd>
                <dt>Registered</dt><dd>{time(s.registeredAt)} (<Age at={s.registeredAt} />)</dd>
                <dt>kube-system UID</dt><dd><code>{s.clusterUID}</code></dd>
                <dt>Last heartbeat</dt><dd><Age at={s.lastHeartbeat} /></dd>
                <dt>Agent</dt><dd>{s.agentVersion ?? 'not known'}</dd>
                <dt>Istio</dt><dd>{s.istioVersion ?? 'not known'}</dd>
                <dt>Network</dt><dd>{s.network ?? 'not known'}</dd>
                <dt>Trust domain</dt><dd>{s.trustDomain ?? 'not known'}</dd>
                <dt>Clock</dt><dd>{s.clockSkew ? <State of="warning" text={s.clockSkew} /> : 'within a few seconds of the server’s'}</dd>
                <dt>Labels</dt><dd>{Object.entries(data.labels ?? {}).map(([k, v]) => <code key={k}>{k}={v} </code>)}</dd>
              </dl>
              <p><Link to="/audit" search={{ name }}>Who let it in, and what changed since</Link></p>
            </div>
            <div>
              <h2>Conditions</h2>
              <ul className="plainlist">
                {(s.conditions ?? []).map((c) => <li key={c.type}><State of={c.status} text={c.type} title={c.reason} /> {c.message} <span className="dim"><Age at={c.lastTransitionTime} /></span></li>)}
              </ul>
              <h2>Certificates</h2>
              <dl>
                <dt>Rotation</dt><dd>{ca?.rotation ? <State of={ca.rotation} /> : 'none yet'} {ca?.message}</dd>
                <dt>Intermediate</dt><dd>{ca?.intermediate?.subject ?? 'none: istiod signs with a root of its own'}</dd>
                <dt>Serial number</dt><dd><code>{ca?.intermediate?.serial}</code></dd>
                <dt>Issued by</dt><dd>{ca?.intermediate?.issuer}</dd>
                <dt>Ends</dt><dd>{time(ca?.intermediate?.notAfter)} (in {left(ca?.intermediate?.notAfter, now)})</dd>
                <dt>Roots trusted</dt><dd>{(ca?.roots ?? []).map((r) => <div key={r.fingerprint}>{r.subject} <code>{short(r.fingerprint)}</code></div>)}</dd>
                <dt>Proven by</dt><dd>{(ca?.verifiers ?? []).map((v) => <div key={v.kind}>{v.trusting} of {v.total} {v.kind}{v.behind?.length ? `, behind: ${v.behind.join(', ')}` : ''}</div>)} <span className="dim">probed <Age at={ca?.lastProbe} /></span></dd>
              </dl>
              {(ca?.problems ?? []).map((p) => <p key={p} className="error">{p}</p>)}
            </div>
          </div>
          <h2>Peers, as reached from here</h2>
          <Table
            label="Peers" id={(p) => p.cluster} rows={s.peers ?? []}
            columns={[
              { key: 'cluster', title: 'Cluster', cell: (p) => <Link to="/clusters/$name" params={{ name: p.cluster }}>{p.cluster}</Link>, sort: (p) => p.cluster },
              { key: 'reach', title: 'Answers', cell: (p) => <State of={p.reachable ?? 'note'} text={p.reachable === 'True' ? 'yes' : p.reachable === 'False' ? 'no' : 'not known'} />, sort: (p) => p.reachable ?? '' },
              { key: 'rtt', title: 'Round trip', cell: (p) => p.roundTrip ?? '', numeric: true },
              { key: 'address', title: 'Gateway', cell: (p) => <code>{p.address}</code> },
              { key: 'how', title: 'Peering', cell: (p) => p.reason },
              { key: 'message', title: 'Remark', cell: (p) => p.message ?? '' },
            ]}
          />
        </div>
      )}
    </section>
  )
}
