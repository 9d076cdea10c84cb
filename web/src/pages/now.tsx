import { Link } from '@tanstack/react-router'
import { useApi } from '../lib/api'
import { Age, Copy, State, Waiting, useNow } from '../lib/parts'
import { left, ms, time } from '../lib/text'
import type { Link as Way, Now } from '../lib/types'

// There follows a path of this UI that the server made, with its search.
export function There({ to, children }: { to: string; children: React.ReactNode }) {
  const [path, search] = to.split('?')
  return <Link to={path as '/'} search={Object.fromEntries(new URLSearchParams(search ?? '')) as never}>{children}</Link>
}

export function NowPage() {
  const now = useNow()
  const { data, error, isLoading } = useApi<Now>('now', { every: 15_000 })
  if (!data) return <Waiting error={error} what="what is going on" loading={isLoading} />
  return (
    <section>
      <h1 className={data.healthy ? 'verdict' : 'verdict bad'} aria-live="polite">{data.verdict}</h1>
      {error && <Waiting error={error} what="" loading={false} />}
      {data.unknown?.map((u) => <p key={u} className="error">Not known: {u}</p>)}
      <div className="columns">
        <div>
          <h2>Problems</h2>
          {data.problems.length === 0 && <p className="dim">None.</p>}
          <ol className="problems">
            {data.problems.map((p) => (
              <li key={p.what + p.text}>
                <State of={p.severity} />
                <div>
                  <There to={p.page}><strong>{p.what}</strong></There> {p.text}
                  {p.since && <span className="dim"> since <Age at={p.since} suffix="" /> ago</span>}
                  {p.suspect && (
                    <p className="suspect">
                      likely: <Age at={p.suspect.at} /> {p.suspect.text}{p.suspect.by && <> by {p.suspect.by}</>} <There to={`/audit?n=${p.suspect.n}`}>diff</There>
                    </p>
                  )}
                </div>
              </li>
            ))}
          </ol>
          {!!data.more && <p>and {data.more} more</p>}
          <p><Copy label="Copy incident summary" text={summary(data)} /></p>
        </div>
        <div>
          <h2>Clusters</h2>
          <ul className="strip">
            {data.clusters.map((c) => (
              <li key={c.name} className={c.stale ? 'hatched' : undefined}>
                <Link to="/clusters/$name" params={{ name: c.name }}>{c.name}</Link> <State of={c.stale ? 'stale' : 'ok'} text={c.stale ? 'STALE' : 'ok'} /> <Age at={c.heartbeat} suffix="" of="last heartbeat" />
              </li>
            ))}
          </ul>
          {data.links && data.links.length > 0 && <RoundTrips links={data.links} />}
          <p>
            next expiry: {data.expiry ? <><Link to="/trust">{data.expiry.what}</Link> in {left(data.expiry.until, now)}</> : <span className="dim">none known</span>}
            <br />
            rotation: {data.rotation ? <Link to="/trust">{data.rotation}</Link> : 'none'}
          </p>
          {!data.telemetry && <p className="dim">No agent has reported traffic yet: what services do is not known. <Link to="/telemetry">What can we not see?</Link></p>}
        </div>
      </div>
      <h2>Changes in the last 24 hours</h2>
      {data.changes.length === 0 && <p className="dim">None on record.</p>}
      <ul className="changes">
        {data.changes.map((c) => (
          <li key={c.n}>
            <time dateTime={c.at} title={time(c.at)}><Age at={c.at} /></time> <span className={'mark ' + c.kind}>{c.kind}</span> {c.text} {c.by && <>by {c.by}</>} <There to={`/audit?n=${c.n}`}>record</There>
          </li>
        ))}
      </ul>
    </section>
  )
}

function summary(n: Now): string {
  const here = location.origin
  return [
    `**${n.verdict}** (as of ${time(n.at)})`, '', ...n.problems.map((p) => `- ${p.severity}: [${p.what}](${here}${p.page}) ${p.text}${p.since ? ` since ${time(p.since)}` : ''}`), '',
    'Changes:', ...n.changes.slice(0, 5).map((c) => `- ${time(c.at)} ${c.text}${c.by ? ` by ${c.by}` : ''}`),
  ].join('\n')
}

// RoundTrips answers "is it the WAN?" in a second.
export function RoundTrips({ links }: { links: Way[] }) {
  const names = [...new Set(links.flatMap((l) => [l.from, l.to]))].sort()
  const of = new Map(links.map((l) => [l.from + '~' + l.to, l]))
  if (names.length > 12) return <p><Link to="/telemetry">{links.length} measured round trips between clusters</Link></p>
  return (
    <table className="matrix" aria-label="Round trips between clusters">
      <caption>round trip, from row to column</caption>
      <thead>
        <tr><th scope="col">ms</th>{names.map((n) => <th key={n} scope="col">{n}</th>)}</tr>
      </thead>
      <tbody>
        {names.map((a) => (
          <tr key={a}>
            <th scope="row">{a}</th>
            {names.map((b) => {
              const l = of.get(a + '~' + b)
              return (
                <td key={b} title={l ? `${l.sent} probes, ${(l.loss * 100).toFixed(0)} % lost${l.why ? ': ' + l.why : ''}` : undefined}>
                  {a === b ? '–' : !l ? '?' : l.rtt == null ? <State of="critical" text="lost" /> : ms(l.rtt).replace(' ms', '')}
                </td>
              )
            })}
          </tr>
        ))}
      </tbody>
    </table>
  )
}
