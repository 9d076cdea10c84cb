import { useNavigate, useSearch } from '@tanstack/react-router'
import { useState } from 'react'
import { useApi } from '../lib/api'
import { Age, Command, Copy, State, Waiting } from '../lib/parts'
import { time } from '../lib/text'
import type { AuditSearch } from '../routes'
import type { Audit, AuditRecord } from '../lib/types'

// Questions that auditors ask, saved.
const saved: { name: string; search: AuditSearch }[] = [
  { name: 'Who let clusters in', search: { act: 'cluster.registered' } }, { name: 'Writes', search: { act: 'write.admitted' } }, { name: 'Refused writes', search: { act: 'write.refused' } },
  { name: 'Drift', search: { act: 'drift.corrected' } }, { name: 'Rotations', search: { act: 'trust.changed' } }, { name: 'Certificates', search: { act: 'certificate.issued' } }, { name: 'Who read this log', search: { act: 'log.read' } },
]

export function AuditPage() {
  const search = useSearch({ from: '/audit' })
  const navigate = useNavigate()
  const params = new URLSearchParams({ last: 'true', limit: '100' })
  for (const [k, v] of Object.entries(search)) if (v !== undefined && k !== 'n') params.set(k, String(v))
  if (search.n !== undefined) {
    params.set('after', String(search.n))
    params.set('before', String(search.n + 1))
  }
  const { data, error, isLoading } = useApi<Audit>('audit?' + params.toString())
  const set = (s: AuditSearch) => void navigate({ to: '/audit', search: s })
  const lines = data?.head.split('\n') ?? []
  const flags = Object.entries(search).filter(([k, v]) => v !== undefined && !['before', 'n'].includes(k)).map(([k, v]) => `--${k} ${JSON.stringify(v)}`).join(' ')
  return (
    <section>
      <h1>Audit</h1>
      <p className="saved">{saved.map((s) => <button type="button" key={s.name} className="small" aria-pressed={JSON.stringify(s.search) === JSON.stringify(search)} onClick={() => set(s.search)}>{s.name}</button>)}</p>
      <Question search={search} set={set} />
      <Waiting error={error} what="the audit log (this question goes on record)" loading={isLoading} />
      {data && (
        <>
          <p className="dim">The log has {lines[1]} records; its signed root hash is <code>{lines[2]}</code>. Each question asked here is on record itself.</p>
          <ol className="records" aria-label="Records, the latest first">
            {data.records.map((r, i) => <Record key={data.places[i]} n={data.places[i]!} record={r} open={search.n !== undefined} />)}
          </ol>
          {data.records.length === 0 && <p>Nothing on record answers this.</p>}
          {data.more && <button type="button" onClick={() => set({ ...search, before: data.places[data.places.length - 1] })}>Earlier ones</button>}
          <h2>To keep, and to prove</h2>
          <Command text={`meshctl audit export -o jsonl --file audit.jsonl ${flags} --mgmt-context mgmt`} />
          <Command text="meshctl audit verify --file audit.jsonl" />
        </>
      )}
    </section>
  )
}

function Question({ search, set }: { search: AuditSearch; set: (s: AuditSearch) => void }) {
  const [draft, setDraft] = useState<AuditSearch>(search)
  const field = (key: 'name' | 'user' | 'cluster' | 'from' | 'to', label: string, placeholder: string) => (
    <label>
      {label} <input value={draft[key] ?? ''} placeholder={placeholder} className={key === 'name' ? 'filter' : undefined} onChange={(e) => setDraft({ ...draft, [key]: e.target.value || undefined })} />
    </label>
  )
  return (
    <form className="question" onSubmit={(e) => { e.preventDefault(); set({ ...draft, before: undefined, n: undefined }) }}>
      {field('name', 'Object or cluster', 'prod-eu-west-3')}
      {field('user', 'User', 'jane.doe@bank.example.com')}
      {field('cluster', 'Cluster', '')}
      {field('from', 'From', '2026-02-01T00:00:00Z')}
      {field('to', 'Until', '2026-03-01T00:00:00Z')}
      <button type="submit">Ask</button>
      <button type="button" onClick={() => { setDraft({}); set({}) }}>Clear</button>
    </form>
  )
}

function Record({ n, record: r, open }: { n: number; record: AuditRecord; open: boolean }) {
  return (
    <li>
      <details open={open}>
        <summary>
          <span title={time(r.at)}><Age at={r.at} /></span> <State of={r.act.endsWith('refused') ? 'warning' : 'ok'} text={r.act} /> {r.operation} {r.object ?? r.cluster} {r.user ? <>by <strong>{r.user}</strong></> : r.manager ? <>by {r.manager}</> : null}{r.dryRun ? ' (dry run)' : ''}
        </summary>
        <dl>
          <dt>Place in the log</dt><dd>{n}</dd>
          <dt>Time</dt><dd>{time(r.at)}</dd>
          {r.groups && <><dt>Groups</dt><dd>{r.groups.join(', ')}</dd></>}
          {r.cluster && <><dt>Cluster</dt><dd>{r.cluster}</dd></>}
          {r.policy && <><dt>Policy</dt><dd>{r.policy}</dd></>}
          {r.detail && <><dt>Detail</dt><dd>{r.detail}</dd></>}
          {r.membership && <><dt>Joined with</dt><dd>trust domain {r.membership.trustDomain ?? 'not known'}, agent {r.membership.agentVersion ?? 'not known'}, kube-system {r.membership.clusterUID}</dd></>}
          {r.certificate && <><dt>Certificate</dt><dd>{r.certificate.subject} serial number <code>{r.certificate.serial}</code> until {r.certificate.notAfter}</dd></>}
          {r.uid && <><dt>UID</dt><dd><code>{r.uid}</code></dd></>}
        </dl>
        {r.diff && r.diff.length > 0 && (
          <table className="diff" aria-label="What changed">
            <thead><tr><th scope="col">Field</th><th scope="col">Before</th><th scope="col">After</th></tr></thead>
            <tbody>{r.diff.map((d) => <tr key={d.path}><th scope="row"><code>{d.path}</code></th><td className="old">{shown(d.old)}</td><td className="new">{shown(d.new)}</td></tr>)}</tbody>
          </table>
        )}
        <Copy text={JSON.stringify({ n, ...r }, null, 2)} label="Copy record" />
      </details>
    </li>
  )
}

const shown = (v: unknown) => (v === undefined || v === null || v === '' ? <span className="dim">–</span> : typeof v === 'string' ? v : JSON.stringify(v))
