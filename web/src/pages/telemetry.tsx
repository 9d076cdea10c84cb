import { Link } from '@tanstack/react-router'
import { useApi } from '../lib/api'
import { Age, State, Table, Waiting } from '../lib/parts'
import type { Telemetry } from '../lib/types'
import { RoundTrips } from './now'

export function TelemetryPage() {
  const { data, error, isLoading } = useApi<Telemetry>('telemetry')
  return (
    <section>
      <h1>Telemetry: what can we not see?</h1>
      <Waiting error={error} what="what is seen" loading={isLoading} />
      {data && (
        <>
          <p>
            {data.edges === 0 ? 'No traffic has been reported.' : `${data.edges} edges; ${data.l4Only} of them are L4 only, so that no request latency is known there. A waypoint for the destination measures it.`}
            {' '}History reaches back {data.history[0] ? <Age at={data.history[0]} suffix="" /> : 'not at all yet'}.
          </p>
          {data.silent.length > 0 && <p className="error">Registered, and no traffic reported: {data.silent.map((n) => <span key={n}><Link to="/clusters/$name" params={{ name: n }}>{n}</Link> </span>)}</p>}
          <Table
            label="Clusters that report" rows={data.clusters} id={(c) => c.name} stale={(c) => c.stale}
            columns={[
              { key: 'name', title: 'Cluster', cell: (c) => <Link to="/clusters/$name" params={{ name: c.name }}>{c.name}</Link>, sort: (c) => c.name },
              { key: 'state', title: 'State', cell: (c) => <State of={c.stale ? 'stale' : 'ok'} text={c.stale ? 'no data' : 'fresh'} /> },
              { key: 'last', title: 'Last report', cell: (c) => <Age at={c.lastReport} />, sort: (c) => c.lastReport },
              { key: 'edges', title: 'Edges', cell: (c) => c.edges, sort: (c) => c.edges, numeric: true },
              { key: 'lost', title: 'Reports lost', cell: (c) => (c.lost ? <State of="warning" text={String(c.lost)} /> : 0), sort: (c) => c.lost, numeric: true },
              { key: 'refused', title: 'Refused', cell: (c) => (c.refused ? <State of="warning" text={String(c.refused)} /> : 0), sort: (c) => c.refused, numeric: true },
              { key: 'caps', title: 'Caps hit', cell: (c) => (c.caps?.length ? <State of="warning" text={c.caps.map((x) => Object.values(x).join(' ')).join('; ')} /> : 'none') },
            ]}
          />
          {data.links.length > 0 && <RoundTrips links={data.links} />}
        </>
      )}
    </section>
  )
}
