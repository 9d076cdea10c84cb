import { Link, useNavigate, useSearch } from '@tanstack/react-router'
import { useApi } from '../lib/api'
import { Age, type Column, Command, Filter, State, Table, Waiting, matches, useNow } from '../lib/parts'
import { left, short, time } from '../lib/text'
import type { Trust, TrustPolicy } from '../lib/types'

interface Row { id: string; kind: string; where: string; subject: string; issuer: string; serial: string; fingerprint: string; from?: string; until?: string }

const phases = ['Steady', 'Preparing', 'AddingRoot', 'Switching', 'DroppingRoot', 'Finished']

export function TrustPage() {
  const navigate = useNavigate()
  const now = useNow()
  const { q } = useSearch({ from: '/trust' })
  const { data, error, isLoading } = useApi<Trust>('trust?opened=1')
  const rows: Row[] = []
  for (const p of data?.policies ?? []) {
    for (const r of p.status.roots ?? []) {
      rows.push({ id: 'root' + r.fingerprint, kind: `root, ${r.role.toLowerCase()}`, where: p.name, subject: r.subject ?? '', issuer: r.issuer ?? '', serial: '', fingerprint: r.fingerprint, until: r.notAfter })
    }
  }
  for (const c of data?.clusters ?? []) {
    const i = c.status.caStatus?.intermediate
    if (i) rows.push({ id: c.name + i.fingerprint, kind: 'intermediate', where: c.name, subject: i.subject ?? '', issuer: i.issuer ?? '', serial: i.serial ?? '', fingerprint: i.fingerprint, from: i.notBefore, until: i.notAfter })
  }
  rows.sort((a, b) => (a.until ?? '9').localeCompare(b.until ?? '9'))
  const shown = rows.filter((r) => matches(q, r.kind, r.where, r.subject, r.issuer, r.serial, r.fingerprint))
  const columns: Column<Row>[] = [
    { key: 'until', title: 'Ends in', cell: (r) => <span title={time(r.until)}>{left(r.until, now)}</span>, sort: (r) => r.until ?? '9', numeric: true },
    { key: 'life', title: 'Life', cell: (r) => <Life from={r.from} until={r.until} now={now} /> },
    { key: 'kind', title: 'Kind', cell: (r) => r.kind, sort: (r) => r.kind },
    { key: 'where', title: 'Where', cell: (r) => (r.kind === 'intermediate' ? <Link to="/clusters/$name" params={{ name: r.where }}>{r.where}</Link> : r.where), sort: (r) => r.where },
    { key: 'subject', title: 'Subject', cell: (r) => r.subject, sort: (r) => r.subject },
    { key: 'issuer', title: 'Issued by', cell: (r) => r.issuer, sort: (r) => r.issuer },
    { key: 'fingerprint', title: 'SHA-256', cell: (r) => <code title={r.fingerprint}>{short(r.fingerprint)}</code> },
  ]
  return (
    <section>
      <h1>Trust</h1>
      <Waiting error={error} what="certificates" loading={isLoading} />
      {data?.policies.length === 0 && <p>There is no RootTrustPolicy: each cluster trusts what its own istiod has. <Link to="/audit" search={{ name: 'root-trust-policy' }}>Was there one?</Link></p>}
      {data?.policies.map((p) => <Rotation key={p.name} policy={p} />)}
      {data && data.policies.length > 0 && <Matrix trust={data} />}
      <h2>What ends first</h2>
      <Filter value={q ?? ''} set={(v) => void navigate({ to: '/trust', search: { q: v || undefined }, replace: true })} what="certificates: cluster, subject, serial number" />
      {data && <Table label="Certificates" rows={shown} columns={columns} id={(r) => r.id} />}
    </section>
  )
}

// Life is how much of a certificate's life has passed.
function Life({ from, until, now }: { from?: string; until?: string; now: number }) {
  if (!from || !until) return <span className="dim">–</span>
  const part = Math.min(1, Math.max(0, (now - Date.parse(from)) / (Date.parse(until) - Date.parse(from))))
  return <meter min={0} max={1} low={0.5} high={0.85} optimum={0} value={part} title={`${Math.round(part * 100)} % of its life has passed`} aria-label={`${Math.round(part * 100)} percent of its life has passed`} />
}

function Rotation({ policy }: { policy: TrustPolicy }) {
  const s = policy.status
  const phase = s.phase || 'Steady'
  const waits = (s.clusters ?? []).filter((c) => c.state !== 'ACCEPTED')
  return (
    <article>
      <h2>{policy.name} {s.state && <State of={s.state} />}</h2>
      <p>{s.message}</p>
      <ol className="steps" aria-label={`Phases of a rotation; now ${phase}`}>
        {phases.map((p) => <li key={p} aria-current={p === phase ? 'step' : undefined} className={phases.indexOf(p) < phases.indexOf(phase) ? 'done' : undefined}>{p}</li>)}
      </ol>
      {phase !== 'Steady' && (
        <>
          <p className="dim">{waits.length === 0 ? 'Every cluster is as this phase wants it.' : `This phase waits for ${waits.length}: the next one begins when it is proven there. It is safe to stop here for as long as you like.`}</p>
          <ul>{waits.slice(0, 10).map((c) => <li key={c.name}><Link to="/clusters/$name" params={{ name: c.name }}>{c.name}</Link>: {c.message}{c.until && <> (at the latest in {left(c.until, Date.now())})</>}</li>)}</ul>
          <Command text={`meshctl trust pause --reason "" --mgmt-context mgmt`} />
        </>
      )}
      {(s.revoked ?? []).length > 0 && (
        <>
          <h3>Revoked</h3>
          <ul>{s.revoked!.map((r) => <li key={r.serial}>{r.cluster}: {r.subject} <code>{r.serial}</code> <Age at={r.revokedAt} /> {r.reason && <>because “{r.reason}”</>} {r.problem && <State of="warning" text={r.problem} />}</li>)}</ul>
        </>
      )}
    </article>
  )
}

// Matrix says which cluster trusts which root, and how many of its leaves are issued under it.
function Matrix({ trust }: { trust: Trust }) {
  const roots = trust.policies.flatMap((p) => p.status.roots ?? [])
  if (trust.clusters.length > 60) return <p className="dim">{trust.clusters.length} clusters: filter the table below.</p>
  return (
    <table className="matrix" aria-label="Which cluster trusts which root">
      <caption>roots trusted, and proxies that present a certificate under the root of the phase</caption>
      <thead><tr><th scope="col">Cluster</th>{roots.map((r) => <th key={r.fingerprint} scope="col">{r.subject} <span className="dim">{r.role}</span></th>)}<th scope="col">Presenting</th></tr></thead>
      <tbody>
        {trust.clusters.map((c) => {
          const ca = c.status.caStatus
          const v = ca?.verifiers ?? []
          const total = v.reduce((n, x) => n + x.total, 0)
          const presenting = v.reduce((n, x) => n + x.presenting, 0)
          return (
            <tr key={c.name} className={c.status.connection === 'Connected' ? undefined : 'hatched'}>
              <th scope="row"><Link to="/clusters/$name" params={{ name: c.name }}>{c.name}</Link></th>
              {roots.map((r) => {
                const yes = ca?.roots?.some((x) => x.fingerprint === r.fingerprint)
                const signs = ca?.intermediate && ca.generation === r.generation && r.role !== 'Passive'
                return <td key={r.fingerprint}>{yes ? <State of="ok" text={signs ? 'trusts, signs under it' : 'trusts'} /> : <State of="note" text={ca ? 'does not trust' : 'not known'} />}</td>
              })}
              <td>{total ? `${Math.round((100 * presenting) / total)} % of ${total}` : 'not known'}</td>
            </tr>
          )
        })}
      </tbody>
    </table>
  )
}
