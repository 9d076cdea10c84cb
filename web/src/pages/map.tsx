import { Link, useNavigate, useSearch } from '@tanstack/react-router'
import { useMemo, useRef, useState } from 'react'
import { useApi } from '../lib/api'
import { type Graph, type GraphEdge, type Node, denied, graphOf, inferred, l4Only, mtls, plainText, staleEdge, unknownEnd } from '../lib/graph'
import { Age, type Column, Filter, State, Table, Waiting, matches } from '../lib/parts'
import { bytes, ms, percent, rate } from '../lib/text'
import type { Columns, Edge, Latency } from '../lib/types'
import type { MapSearch } from '../routes'

const w = 160, h = 44
const levels = ['cluster', 'namespace', 'service'] as const
// A picture of more boxes is unreadable whatever draws it: the table is shown, and a way to fewer.
const drawable = 400

const title = (n: Node) => n.service || n.namespace || n.cluster
const kind = (e: GraphEdge) => (e.flags & staleEdge ? 'stale' : e.flags & denied ? 'denied' : (e.errors ?? 0) >= 0.05 ? 'critical' : (e.errors ?? 0) > 0.01 ? 'warning' : 'ok')

function label(e: GraphEdge): string {
  if (e.denied) return `DENY ${rate(e.denied)}`
  if (e.rate) return `${rate(e.rate)}${e.p99 != null ? ` p99 ~${ms(e.p99)}` : ''}`
  return e.opened ? `${rate(e.opened)} conn` : ''
}

export function MapPage() {
  const search = useSearch({ from: '/map' })
  const navigate = useNavigate()
  const level = search.level ?? 'namespace'
  const params = new URLSearchParams({ level })
  if (search.focus) params.set('focus', search.focus)
  if (search.at) params.set('at', search.at)
  if (search.namespace) params.set('namespace', search.namespace)
  if (search.cluster) params.set('cluster', search.cluster)
  const { data, error, isLoading } = useApi<Columns>('topology?' + params.toString())
  const whole = useMemo(() => (data ? graphOf(data) : undefined), [data])
  const graph = useMemo(() => {
    if (!whole || !search.q) return whole
    const nodes = new Set(whole.nodes.filter((n) => matches(search.q, n.cluster, n.namespace, n.service)))
    const edges = whole.edges.filter((e) => nodes.has(e.from) || nodes.has(e.to))
    for (const e of edges) {
      nodes.add(e.from)
      nodes.add(e.to)
    }
    return { nodes: [...nodes], edges }
  }, [whole, search.q])
  const set = (s: Partial<MapSearch>) => void navigate({ to: '/map', search: { ...search, ...s } })
  const table = search.view === 'table' || (graph?.nodes.length ?? 0) > drawable
  return (
    <section>
      <h1>Map</h1>
      <div className="tools" role="toolbar" aria-label="How the map is drawn">
        {levels.map((l) => <button type="button" key={l} className="small" aria-pressed={level === l} onClick={() => set({ level: l, focus: undefined, edge: undefined, cluster: undefined, namespace: undefined })}>{l}s</button>)}
        {level === 'neighbourhood' && <span className="small chosen">around {search.focus} <button type="button" className="plain" onClick={() => set({ level: 'service', focus: undefined })}>clear</button></span>}
        {(search.cluster || search.namespace) && <span className="small chosen">{[search.namespace, search.cluster].filter(Boolean).join(' in ')} <button type="button" className="plain" onClick={() => set({ cluster: undefined, namespace: undefined })}>clear</button></span>}
        <button type="button" className="small" aria-pressed={search.view === 'table'} onClick={() => set({ view: search.view === 'table' ? undefined : 'table' })}>As a table</button>
        <Filter value={search.q ?? ''} set={(v) => set({ q: v || undefined })} what="the map" />
        <History at={search.at} set={(at) => set({ at })} />
      </div>
      <Waiting error={error} what="who calls whom" loading={isLoading} />
      {error?.status === 404 && <p><Link to="/telemetry">What can we not see, and why?</Link></p>}
      {data?.historic && <p className="note">As it was at <time>{new Date(data.at).toISOString()}</time>. <button type="button" className="small" onClick={() => set({ at: undefined })}>Back to now</button></p>}
      {data?.clusters.filter((c) => c.stale).map((c) => <p key={c.name} className="note hatched">{c.name}: no data since <Age at={c.staleSince ?? c.lastReport} suffix="" /> ago; what is drawn of it is the last that was known.</p>)}
      {graph && (table ? (
        <>
          {graph.nodes.length > drawable && <p className="note">{graph.nodes.length} boxes are too many for a picture that anybody could read: filter, or look at one level up.</p>}
          <EdgeTable graph={graph} pick={(e) => pick(e, level, set)} />
        </>
      ) : <Picture graph={graph} boxes={data?.boxes ?? []} chosen={search.edge} level={level} set={set} />)}
      {graph && <p className="dim">{graph.nodes.length} boxes, {graph.edges.length} edges{data?.hidden ? `, ${data.hidden} more not shown` : ''}. Width: rate. Shape and words: <State of="critical" text="5 % errors and more" /> <State of="warning" text="1 %" /> <span className="denytext">dashed: refused by a policy</span> dotted: joined from two clusters’ reports. Arrow keys walk along edges, Enter opens.</p>}
      {search.edge && <Drawer id={search.edge} at={search.at} close={() => set({ edge: undefined })} />}
    </section>
  )
}

function pick(e: GraphEdge, level: string, set: (s: Partial<MapSearch>) => void) {
  if (level === 'cluster') set({ level: 'namespace', cluster: e.to.cluster })
  else if (level === 'namespace') set({ level: 'service', namespace: e.to.namespace, cluster: undefined })
  else set({ edge: e.id })
}

// History goes back to where an incident began.
function History({ at, set }: { at?: string; set: (at: string | undefined) => void }) {
  const reach = 60
  const back = at ? Math.min(reach, Math.round((Date.now() - Date.parse(at)) / 60_000)) : 0
  const [drag, setDrag] = useState<number | null>(null)
  const commit = () => {
    if (drag != null) set(drag === 0 ? undefined : new Date(Math.floor((Date.now() - drag * 60_000) / 1000) * 1000).toISOString().replace('.000', ''))
    setDrag(null)
  }
  const shown = drag ?? back
  return (
    <label className="history">
      {shown === 0 ? 'now' : `${shown} min ago`}
      <input type="range" min={-reach} max={0} value={-shown} onChange={(e) => setDrag(-Number(e.target.value))} onPointerUp={commit} onKeyUp={commit} onBlur={commit} aria-label="Minutes ago" />
    </label>
  )
}

function Picture({ graph, boxes, chosen, level, set }: { graph: Graph; boxes: Columns['boxes']; chosen?: string; level: string; set: (s: Partial<MapSearch>) => void }) {
  const svg = useRef<SVGSVGElement>(null)
  const bounds = useMemo(() => {
    let x0 = Infinity, y0 = Infinity, x1 = -Infinity, y1 = -Infinity
    const grow = (a: number, b: number, c: number, d: number) => {
      x0 = Math.min(x0, a)
      y0 = Math.min(y0, b)
      x1 = Math.max(x1, c)
      y1 = Math.max(y1, d)
    }
    for (const n of graph.nodes) grow(n.x - w / 2, n.y - h / 2, n.x + w / 2, n.y + h / 2)
    for (const b of boxes ?? []) grow(b.x, b.y, b.x + b.w, b.y + b.h)
    if (x0 > x1) return { x: 0, y: 0, w: 100, h: 100 }
    return { x: x0 - 40, y: y0 - 40, w: x1 - x0 + 80, h: y1 - y0 + 80 }
  }, [graph, boxes])
  const [zoom, setZoom] = useState(1)
  const most = Math.max(1, ...graph.edges.map((e) => e.rate ?? e.opened ?? 0))
  const out = useMemo(() => Map.groupBy(graph.edges, (e) => e.from.id), [graph])
  const into = useMemo(() => Map.groupBy(graph.edges, (e) => e.to.id), [graph])
  const focusNode = (id: string) => (svg.current?.querySelector(`[data-node="${CSS.escape(id)}"]`) as SVGElement | null)?.focus()
  const open = (n: Node) => {
    if (level === 'cluster') set({ level: 'namespace', cluster: n.cluster })
    else if (level === 'namespace') set({ level: 'service', namespace: n.namespace, cluster: n.cluster })
    else set({ level: 'neighbourhood', focus: n.id })
  }
  return (
    <div className="picture">
      <div className="zoom">
        <button type="button" className="small" onClick={() => setZoom((z) => Math.min(6, z * 1.4))} aria-label="Larger">+</button>
        <button type="button" className="small" onClick={() => setZoom((z) => Math.max(1, z / 1.4))} aria-label="Smaller">−</button>
        <button type="button" className="small" onClick={() => setZoom(1)}>Whole</button>
      </div>
      <div className="canvas" tabIndex={0} role="region" aria-label="Picture of the mesh; the same as a table: As a table">
        <svg ref={svg} viewBox={`${bounds.x} ${bounds.y} ${bounds.w} ${bounds.h}`} style={{ width: `${zoom * 100}%` }} role="group" aria-label="Who calls whom">
          <defs>
            {['ok', 'warning', 'critical', 'denied', 'stale'].map((k) => (
              <marker key={k} id={'arrow-' + k} viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8Z" className={'arrow ' + k} /></marker>
            ))}
            <pattern id="hatch" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="3" height="8" className="hatchline" /></pattern>
          </defs>
          {(boxes ?? []).map((b) => (
            <g key={b.cluster + '/' + (b.namespace ?? '')} className={b.namespace ? 'frame inner' : 'frame'}>
              <rect x={b.x} y={b.y} width={b.w} height={b.h} rx={10} />
              <text x={b.x + 12} y={b.y + 20}>{b.namespace || b.cluster}</text>
            </g>
          ))}
          {graph.edges.filter((e) => e.from !== e.to).map((e) => {
            const k = kind(e)
            const p = path(e)
            return (
              <g key={e.id} className={`edge ${k}${chosen === e.id ? ' chosen' : ''}`} onClick={() => pick(e, level, set)}>
                <path d={p.d} className="hit" />
                <path d={p.d} className={'line' + (e.flags & inferred ? ' inferred' : '')} style={{ strokeWidth: 1 + 5 * Math.sqrt((e.rate ?? e.opened ?? 0) / most) }} markerEnd={`url(#arrow-${k})`}>
                  <title>{`${e.from.id} to ${e.to.id}: ${label(e)}, errors ${percent(e.errors)}, ${e.age} s old`}</title>
                </path>
                {graph.edges.length <= 60 && label(e) && <text x={p.x} y={p.y - 4} textAnchor="middle">{label(e)}</text>}
              </g>
            )
          })}
          {graph.nodes.map((n) => {
            const sick = (n.errors ?? 0) >= 0.05
            return (
              <g
                key={n.id} data-node={n.id} tabIndex={0} role="button" className={`node ${sick ? 'critical' : n.denied ? 'warning' : 'ok'}${n.stale ? ' stale' : ''}`} transform={`translate(${n.x - w / 2} ${n.y - h / 2})`}
                aria-label={`${clip(title(n))} ${numbers(n)} in ${n.cluster}${sick ? ', failing' : ''}${n.denied ? ', refuses callers' : ''}${n.stale ? ', stale' : ''}`}
                onClick={() => open(n)}
                onKeyDown={(ev) => {
                  const next = ev.key === 'ArrowRight' || ev.key === 'ArrowDown' ? out.get(n.id)?.[0]?.to : ev.key === 'ArrowLeft' || ev.key === 'ArrowUp' ? into.get(n.id)?.[0]?.from : undefined
                  if (next) {
                    ev.preventDefault()
                    focusNode(next.id)
                  } else if (ev.key === 'Enter' || ev.key === ' ') {
                    ev.preventDefault()
                    const first = into.get(n.id)?.[0]
                    if (ev.shiftKey && first && level !== 'cluster' && level !== 'namespace') set({ edge: first.id })
                    else open(n)
                  }
                }}
              >
                <rect width={w} height={h} rx={6} />
                {n.stale && <rect width={w} height={h} rx={6} fill="url(#hatch)" />}
                <text x={10} y={18} className="name" aria-hidden="true">{(sick ? '■ ' : n.denied ? '▲ ' : '') + clip(title(n)) + ' '}</text>
                <text x={10} y={34} className="number" aria-hidden="true">{numbers(n)}</text>
              </g>
            )
          })}
        </svg>
      </div>
    </div>
  )
}

const numbers = (n: Node) => (n.rate ? `${rate(n.rate)} ${percent(n.errors)}${n.p99 != null ? ` ~${ms(n.p99)}` : ''}` : n.opened ? `${rate(n.opened)} conn, L4 only` : '')
const clip = (s: string) => (s.length > 20 ? s.slice(0, 19) + '…' : s)

// path bows edges between clusters, and keeps there and back apart.
function path(e: GraphEdge) {
  const dx = e.to.x - e.from.x, dy = e.to.y - e.from.y
  const d = Math.hypot(dx, dy) || 1
  const cut = (n: Node, sx: number, sy: number) => {
    const t = Math.min(Math.abs(sx) > 0.01 ? (w / 2 + 3) / Math.abs(sx) : Infinity, Math.abs(sy) > 0.01 ? (h / 2 + 3) / Math.abs(sy) : Infinity)
    return { x: n.x + sx * t, y: n.y + sy * t }
  }
  const bow = (e.from.cluster === e.to.cluster ? 0.08 : 0.18) * d
  const mx = (e.from.x + e.to.x) / 2 - (dy / d) * bow, my = (e.from.y + e.to.y) / 2 + (dx / d) * bow
  const a = cut(e.from, mx - e.from.x, my - e.from.y), b = cut(e.to, mx - e.to.x, my - e.to.y)
  return { d: `M${a.x.toFixed(1)} ${a.y.toFixed(1)}Q${mx.toFixed(1)} ${my.toFixed(1)} ${b.x.toFixed(1)} ${b.y.toFixed(1)}`, x: (a.x + 2 * mx + b.x) / 4, y: (a.y + 2 * my + b.y) / 4 }
}

function EdgeTable({ graph, pick }: { graph: Graph; pick: (e: GraphEdge) => void }) {
  const where = (n: Node) => [n.service, n.namespace, n.cluster].filter(Boolean).join(' · ')
  const columns: Column<GraphEdge>[] = [
    { key: 'from', title: 'From', cell: (e) => where(e.from), sort: (e) => where(e.from) },
    { key: 'to', title: 'To', cell: (e) => where(e.to), sort: (e) => where(e.to) },
    { key: 'state', title: 'State', cell: (e) => { const k = kind(e); return <State of={k === 'denied' ? 'warning' : k} text={k === 'denied' ? 'denied' : k === 'critical' ? 'failing' : k} /> } },
    { key: 'rate', title: 'Requests', cell: (e) => (e.flags & l4Only ? <span className="dim">L4 only</span> : rate(e.rate)), sort: (e) => e.rate ?? -1, numeric: true },
    { key: 'errors', title: 'Errors', cell: (e) => (e.rate ? percent(e.errors) : ''), sort: (e) => e.errors ?? -1, numeric: true },
    { key: 'p50', title: 'p50', cell: (e) => (e.p50 == null ? '' : `~${ms(e.p50)}`), sort: (e) => e.p50 ?? -1, numeric: true },
    { key: 'p99', title: 'p99', cell: (e) => (e.p99 == null ? <span className="dim">not measured</span> : `~${ms(e.p99)}`), sort: (e) => e.p99 ?? -1, numeric: true },
    { key: 'opened', title: 'Connections', cell: (e) => rate(e.opened), sort: (e) => e.opened ?? -1, numeric: true },
    { key: 'denied', title: 'Denied', cell: (e) => (e.denied ? rate(e.denied) : ''), sort: (e) => e.denied, numeric: true },
    { key: 'mtls', title: 'mTLS', cell: (e) => (e.flags & mtls ? 'yes' : e.flags & plainText ? <State of="warning" text="no" /> : 'not known') },
    { key: 'age', title: 'Age', cell: (e) => `${e.age} s`, sort: (e) => e.age, numeric: true },
    { key: 'more', title: 'Remark', cell: (e) => [e.flags & inferred ? 'inferred' : '', e.flags & unknownEnd ? 'one of several' : ''].filter(Boolean).join(', ') },
  ]
  return <Table label="Who calls whom" rows={graph.edges} columns={columns} id={(e) => e.id} open={pick} stale={(e) => !!(e.flags & staleEdge)} />
}

function Drawer({ id, at, close }: { id: string; at?: string; close: () => void }) {
  const { data: e, error, isLoading } = useApi<Edge>(`edges/${encodeURIComponent(id)}${at ? `?at=${encodeURIComponent(at)}` : ''}`)
  const total = e ? e.rates.success + e.rates.clientError + e.rates.serverError + e.rates.noResponse : 0
  return (
    <aside className="drawer" aria-label="Edge" onKeyDown={(ev) => { if (ev.key === 'Escape') close() }}>
      <button type="button" className="small close" onClick={close}>Close</button>
      <Waiting error={error} what="this edge" loading={isLoading} />
      {e && (
        <>
          <h2>{e.from.service} @ {e.from.cluster} → {e.to.service} @ {e.to.cluster}</h2>
          <p>
            {e.stale && <State of="stale" text="stale" />} {e.inferred && <span title="No proxy named both ends: they were joined by principal and service from two clusters' reports.">inferred </span>}
            {e.candidates && e.candidates.length > 0 && <span>one of {e.candidates.join(', ')} </span>}
            {total > 0 ? `${rate(total)} requests, ${percent((e.rates.serverError + e.rates.noResponse) / total)} failed, ${percent(e.rates.clientError / total)} refused by the service (4xx)` : 'no requests are known, only connections'}
          </p>
          <h3>Where the time goes</h3>
          {e.hint && <p className="note">{e.hint}</p>}
          <Split edge={e} />
          {e.server && <Quantiles name="server" l={e.server} />}
          {e.client && <Quantiles name="client" l={e.client} />}
          <p><Link to="/traces" search={{ service: e.to.service }}>Traces through {e.to.service}</Link></p>
          <h3>Connections</h3>
          <p>{rate(e.tcp.opened)} opened, {rate(e.tcp.failed)} failed; sent {bytes(e.tcp.sent)}, received {bytes(e.tcp.received)}; mTLS {e.mtls === 'mutual_tls' ? 'yes' : e.mtls || 'not known'}</p>
          {e.failures?.map((f) => <p key={f.flag}><State of={f.flag === 'DENY' ? 'warning' : 'critical'} text={f.flag} /> {rate(f.rate)}</p>)}
          {e.decision && (
            <div className="note">
              <p>{e.decision.text}</p>
              {e.decision.accessPolicy && <p><Link to="/policies/$namespace/$name" params={{ namespace: e.decision.accessPolicy.split('/')[0] ?? '', name: e.decision.accessPolicy.split('/')[1] ?? '' }}>AccessPolicy {e.decision.accessPolicy}</Link></p>}
              {e.decision.candidates?.length ? <p className="dim">none of these matched: {e.decision.candidates.join(', ')}</p> : null}
            </div>
          )}
          <h3>Identities</h3>
          <p>{(e.fromPrincipals ?? []).map((p) => <code key={p}>spiffe://{p} </code>)} → {(e.toPrincipals ?? []).map((p) => <code key={p}>spiffe://{p} </code>)}</p>
          {e.codes && <p>codes: {e.codes.map((c) => `${c.code} ${rate(c.rate)}`).join(', ')}</p>}
          <h3>Who says so</h3>
          <ul className="plainlist">{e.sources.map((s) => <li key={s.by + s.cluster}>{s.by} in {s.cluster}, <Age at={s.at} />{s.stale && <> <State of="stale" text="stale" /></>}</li>)}</ul>
          <p className="dim">first seen <Age at={e.firstSeen} />, last traffic <Age at={e.lastSeen} /></p>
        </>
      )}
    </aside>
  )
}

function Split({ edge }: { edge: Edge }) {
  const parts = (['client', 'network', 'server'] as const).flatMap((k) => (edge.split[k] ? [{ k, ...edge.split[k] }] : []))
  if (parts.length === 0) return <p className="dim">Nothing measures how the time is divided.</p>
  const total = parts.reduce((n, p) => n + p.ms, 0) || 1
  return (
    <div className="split" role="img" aria-label={parts.map((p) => `${p.k} ${ms(p.ms)}, from ${p.by}`).join('; ')}>
      {parts.map((p) => <span key={p.k} className={p.k} style={{ flexGrow: Math.max(0.08, p.ms / total) }} title={`${ms(p.ms)}, from ${p.by}`}>{p.k} {ms(p.ms)}</span>)}
    </div>
  )
}

function Quantiles({ name, l }: { name: string; l: Latency }) {
  const one = (q: Latency['p50']) => `~${ms(q.value)} (${q.high ? `between ${ms(q.low)} and ${ms(q.high)}` : `over ${ms(q.low)}`})`
  const most = Math.max(1, ...l.buckets)
  return (
    <div>
      <dl>
        <dt>{name} p50</dt><dd>{one(l.p50)}</dd>
        <dt>p95</dt><dd>{one(l.p95)}</dd>
        <dt>p99</dt><dd>{one(l.p99)}</dd>
      </dl>
      <div className="histogram" role="img" aria-label={`Distribution over ${l.buckets.length} buckets`}>{l.buckets.map((b, i) => <span key={i} style={{ height: `${(100 * b) / most}%` }} />)}</div>
      <p className="dim">from {l.by} in {l.cluster}, last five minutes{l.shared && l.shared > 1 ? `; shared by ${l.shared} edges that the reporter can't tell apart` : ''}</p>
    </div>
  )
}
