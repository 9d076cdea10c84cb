import { useVirtualizer } from '@tanstack/react-virtual'
import { Link, useNavigate, useParams, useSearch } from '@tanstack/react-router'
import { useRef, useState } from 'react'
import { useApi } from '../lib/api'
import { Age, type Column, Copy, Filter, State, Table, Waiting, matches } from '../lib/parts'
import { ms, time } from '../lib/text'
import type { List, Placed, Trace, TraceSummary } from '../lib/types'

const inMs = (ns: number) => ns / 1e6

export function TracesPage() {
  const navigate = useNavigate()
  const search = useSearch({ from: '/traces' })
  const params = new URLSearchParams()
  if (search.service) params.set('service', search.service)
  if (search.cluster) params.set('cluster', search.cluster)
  if (search.errors) params.set('errors', '')
  if (search.slower) params.set('slower', search.slower)
  const { data, error, isLoading } = useApi<List<TraceSummary>>('traces?' + params.toString(), { every: 15_000 })
  const rows = (data?.items ?? []).filter((t) => matches(search.q, t.id, t.service, t.name, ...t.services, ...t.clusters))
  const columns: Column<TraceSummary>[] = [
    { key: 'start', title: 'When', cell: (t) => <Age at={t.start} />, sort: (t) => t.start },
    { key: 'name', title: 'Begins with', cell: (t) => <Link to="/traces/$id" params={{ id: t.id }}>{t.service} {t.name}</Link>, sort: (t) => t.service + t.name },
    { key: 'duration', title: 'Duration', cell: (t) => ms(inMs(t.duration)), sort: (t) => t.duration, numeric: true },
    { key: 'errors', title: 'Errors', cell: (t) => (t.errors ? <State of="critical" text={String(t.errors)} /> : <State of="ok" text="none" />), sort: (t) => t.errors, numeric: true },
    { key: 'spans', title: 'Spans', cell: (t) => t.spans, sort: (t) => t.spans, numeric: true },
    { key: 'clusters', title: 'Clusters', cell: (t) => t.clusters.join(', '), sort: (t) => t.clusters.length },
    { key: 'services', title: 'Services', cell: (t) => t.services.join(', ') },
    { key: 'root', title: 'Root', cell: (t) => (t.root ? 'here' : <span className="dim">not received</span>) },
  ]
  const set = (s: Partial<typeof search>) => void navigate({ to: '/traces', search: { ...search, ...s }, replace: true })
  return (
    <section>
      <h1>Traces</h1>
      <div className="tools" role="toolbar" aria-label="Which traces">
        <button type="button" className="small" aria-pressed={!!search.errors} onClick={() => set({ errors: search.errors ? undefined : 'yes' })}>With errors</button>
        {['100', '500', '1000'].map((n) => <button type="button" key={n} className="small" aria-pressed={search.slower === n} onClick={() => set({ slower: search.slower === n ? undefined : n })}>Slower than {ms(Number(n))}</button>)}
        {search.service && <span className="small chosen">service {search.service} <button type="button" className="plain" onClick={() => set({ service: undefined })}>clear</button></span>}
        <Filter value={search.q ?? ''} set={(v) => set({ q: v || undefined })} what="traces" />
      </div>
      <Waiting error={error} what="traces" loading={isLoading} />
      {data && data.items.length === 0 && <p>No trace is kept that is so. Agents take spans at <code>gloo-mesh-agent:4317</code> (OTLP, gRPC); ztunnel makes none. <Link to="/telemetry">What can we not see?</Link></p>}
      {rows.length > 0 && <Scatter rows={rows} open={(t) => void navigate({ to: '/traces/$id', params: { id: t.id } })} />}
      {data && data.items.length > 0 && <Table label="Traces" rows={rows} columns={columns} id={(t) => t.id} open={(t) => void navigate({ to: '/traces/$id', params: { id: t.id } })} />}
    </section>
  )
}

// Scatter shows the slow ones among many: time from left to right, duration upwards. The table below is its twin.
function Scatter({ rows, open }: { rows: TraceSummary[]; open: (t: TraceSummary) => void }) {
  const w = 1200, h = 150
  const starts = rows.map((t) => Date.parse(t.start))
  const from = Math.min(...starts), to = Math.max(...starts)
  const most = Math.max(...rows.map((t) => t.duration))
  return (
    <svg className="scatter" viewBox={`0 0 ${w} ${h}`} role="img" aria-label={`Durations of ${rows.length} traces up to ${ms(inMs(most))}; the same in the table below`}>
      <text x={4} y={12}>{ms(inMs(most))}</text>
      {rows.map((t, i) => {
        const x = 40 + ((w - 60) * (starts[i]! - from)) / Math.max(1, to - from), y = h - 10 - ((h - 30) * t.duration) / most
        return t.errors
          ? <rect key={t.id} x={x - 4} y={y - 4} width={8} height={8} className="bad" onClick={() => open(t)}><title>{`${t.service} ${t.name}, ${ms(inMs(t.duration))}, failed`}</title></rect>
          : <circle key={t.id} cx={x} cy={y} r={4} onClick={() => open(t)}><title>{`${t.service} ${t.name}, ${ms(inMs(t.duration))}`}</title></circle>
      })}
    </svg>
  )
}

const rowHeight = 26

export function TracePage() {
  const { id } = useParams({ from: '/traces/$id' })
  const { raw } = useSearch({ from: '/traces/$id' })
  const navigate = useNavigate()
  const { data: t, error, isLoading } = useApi<Trace>(`traces/${encodeURIComponent(id)}${raw ? '?raw' : ''}`)
  const [chosen, choose] = useState(-1)
  const shifted = t?.clusters.filter((c) => c.shifted !== 0) ?? []
  const span = t?.spans[chosen]
  return (
    <section>
      <h1>Trace <code>{id}</code></h1>
      <Waiting error={error} what="the trace" loading={isLoading} />
      {t && (
        <>
          <p>
            {time(t.start)}, {ms(inMs(t.duration))}, {t.spans.length} spans{t.truncated ? ` of ${t.spans.length + t.truncated}` : ''}, {t.errors ? <State of="critical" text={`${t.errors} failed`} /> : <State of="ok" text="no error" />} <Copy text={id} label="Copy ID" />
            {' '}<button type="button" className="small" aria-pressed={!!raw} onClick={() => void navigate({ to: '/traces/$id', params: { id }, search: { raw: raw ? undefined : 'yes' } })}>Times as they came</button>
          </p>
          {!raw && shifted.map((c) => <p key={c.cluster} className="note">{c.cluster} is shifted by {ms(inMs(c.shifted)).replace('not measured', '')} ± {ms(inMs(c.error))}: its clock differs from the server’s. <span className="dim">“Times as they came” undoes it.</span></p>)}
          {t.notes?.map((n) => <p key={n} className="note">{n}</p>)}
          <Waterfall trace={t} chosen={chosen} choose={choose} />
          <p className="dim">Solid: measured. Hatched: transit through the mesh, inferred, measured by nobody. Bold line: the critical path. Arrow keys walk.</p>
          {span && (
            <article aria-label="Span">
              <h2>{span.service} {span.name} {span.error && <State of="critical" text="failed" />}</h2>
              <dl>
                <dt>Cluster</dt><dd><Link to="/clusters/$name" params={{ name: span.cluster }}>{span.cluster}</Link></dd>
                <dt>Kind</dt><dd>{span.kind}</dd>
                <dt>Began</dt><dd>{ms(inMs(span.at))} after the trace; by its own clock {span.start}</dd>
                <dt>Duration</dt><dd>{ms(inMs(span.duration))}{span.critical ? `, of which ${ms(inMs(span.critical))} on the critical path` : ''}</dd>
                {span.status && <><dt>Status</dt><dd>{span.status}</dd></>}
                {span.missing && <><dt>Parent</dt><dd>{span.missing}</dd></>}
                {span.warning && <><dt>Warning</dt><dd>{span.warning}</dd></>}
                {(span.attributes ?? []).map((a) => [<dt key={a.k}>{a.k}</dt>, <dd key={a.k + 'v'}>{a.v}</dd>])}
              </dl>
              {span.namespace && <p><Link to="/map" search={{ level: 'neighbourhood', focus: `${span.cluster}/${span.namespace}/${span.service}` }}>On the map</Link></p>}
            </article>
          )}
        </>
      )}
    </section>
  )
}

// Waterfall draws only the rows in view, so that ten thousand spans are no more than ten.
function Waterfall({ trace, chosen, choose }: { trace: Trace; chosen: number; choose: (i: number) => void }) {
  const scroller = useRef<HTMLDivElement>(null)
  const virtual = useVirtualizer({ count: trace.spans.length, getScrollElement: () => scroller.current, estimateSize: () => rowHeight, overscan: 20, initialRect: { width: 800, height: 600 } })
  const lanes = [...new Set(trace.spans.map((s) => s.cluster))]
  const transit = new Map((trace.transits ?? []).map((t) => [t.child, t]))
  const whole = Math.max(1, trace.duration, ...trace.spans.map((s) => s.at + s.duration))
  const at = (ns: number) => `${(100 * Math.max(0, ns)) / whole}%`
  const move = (i: number) => {
    const next = Math.min(trace.spans.length - 1, Math.max(0, i))
    choose(next)
    virtual.scrollToIndex(next)
  }
  return (
    <div
      className="scroller waterfall" ref={scroller} tabIndex={0} role="listbox" aria-label="Spans" aria-activedescendant={chosen >= 0 ? `span-${chosen}` : undefined}
      onKeyDown={(e) => {
        if (e.key === 'ArrowDown' || e.key === 'ArrowUp') {
          e.preventDefault()
          move(chosen + (e.key === 'ArrowDown' ? 1 : -1))
        }
      }}
    >
      <div style={{ height: virtual.getTotalSize(), position: 'relative' }} role="presentation">
        {virtual.getVirtualItems().map((v) => {
          const s = trace.spans[v.index]!
          const t = transit.get(v.index)
          return (
            <div
              key={v.index} id={`span-${v.index}`} role="option" aria-selected={v.index === chosen} className={'span lane' + (lanes.indexOf(s.cluster) % 4) + (s.error ? ' failed' : '')} style={{ top: v.start, height: rowHeight }}
              title={describe(s)} onClick={() => choose(v.index)}
            >
              <span className="what" style={{ paddingLeft: 6 + Math.min(s.depth, 24) * 12 }}>{s.error ? '■ ' : ''}{s.service} <span className="dim">{s.name}</span></span>
              <span className="where">{s.cluster}</span>
              <span className="bars">
                {t && t.out > 0 && <i className="transit" style={{ left: at(s.at - t.out), width: at(t.out) }} title={`transit, inferred: ${t.path}${t.rtt ? `, probed round trip ${ms(inMs(t.rtt))}` : ''}`} />}
                {t && t.back > 0 && <i className="transit" style={{ left: at(s.at + s.duration), width: at(t.back) }} />}
                <i className={'bar' + (s.critical ? ' critical' : '')} style={{ left: at(s.at), width: `max(2px, ${at(s.duration)})` }} />
                <em style={{ left: at(s.at) }}>{ms(inMs(s.duration))}</em>
              </span>
            </div>
          )
        })}
      </div>
    </div>
  )
}

const describe = (s: Placed) => `${s.service} ${s.name} in ${s.cluster}, ${ms(inMs(s.duration))}${s.error ? ', failed' : ''}${s.missing ? ', ' + s.missing : ''}`
