// Parts that every page is made of.
import { useVirtualizer } from '@tanstack/react-virtual'
import { type ReactNode, createContext, useContext, useEffect, useMemo, useRef, useState } from 'react'
import type { ApiError } from './api'
import { age } from './text'

const Clock = createContext(Date.now())

// Ticking makes ages grow while nothing else changes.
export function Ticking({ children }: { children: ReactNode }) {
  const [now, setNow] = useState(Date.now())
  useEffect(() => {
    const t = setInterval(() => setNow(Date.now()), 1000)
    return () => clearInterval(t)
  }, [])
  return <Clock.Provider value={now}>{children}</Clock.Provider>
}

export const useNow = () => useContext(Clock)

const marks: Record<string, { mark: string; kind: string }> = {
  ok: { mark: '●', kind: 'ok' }, warning: { mark: '▲', kind: 'warning' }, critical: { mark: '■', kind: 'critical' }, note: { mark: '◆', kind: 'note' }, stale: { mark: '▨', kind: 'stale' },
}

const kinds: Record<string, string> = {
  Connected: 'ok', InForce: 'ok', ACCEPTED: 'ok', True: 'ok', Succeeded: 'ok', Disconnected: 'stale', Pending: 'note', PENDING: 'note', Overridden: 'warning', Drifted: 'warning', WARNING: 'warning',
  Rejected: 'critical', Unenforceable: 'critical', FAILED: 'critical', INVALID: 'critical', False: 'critical', critical: 'critical', warning: 'warning', note: 'note', ok: 'ok', stale: 'stale',
}

// State is a word with a shape and a colour: never a colour alone.
export function State({ of, text, title }: { of: string; text?: string; title?: string }) {
  const m = marks[kinds[of] ?? 'note']!
  return (
    <span className={'state ' + m.kind} title={title}>
      <span aria-hidden="true">{m.mark}</span> {text ?? of}
    </span>
  )
}

// Age says how old something is, and when it was, on hover.
export function Age({ at, of, suffix = ' ago' }: { at: string | undefined; of?: string; suffix?: string }) {
  const now = useNow()
  if (!at) return <span className="dim">never</span>
  return (
    <time dateTime={at} title={(of ? of + ', ' : '') + at}>
      {age(at, now)}
      {suffix}
    </time>
  )
}

export function Copy({ text, label = 'Copy' }: { text: string; label?: string }) {
  const [done, setDone] = useState(false)
  return (
    <button
      type="button" className="small"
      onClick={() => {
        void navigator.clipboard?.writeText(text).then(() => {
          setDone(true)
          setTimeout(() => setDone(false), 1500)
        })
      }}
    >
      {done ? 'Copied' : label}
    </button>
  )
}

// Command is something to run elsewhere: the UI changes nothing.
export function Command({ text }: { text: string }) {
  return (
    <div className="command">
      <code>{text}</code>
      <Copy text={text} label="Copy command" />
    </div>
  )
}

// Waiting ends in a sentence: what is waited for, or what went wrong.
export function Waiting({ error, what, loading }: { error: ApiError | null; what: string; loading: boolean }) {
  if (error) return <p className="error" role="alert">{error.message}</p>
  if (loading) return <p className="dim" role="status">Asking the management server for {what} …</p>
  return null
}

export interface Column<T> { key: string; title: string; cell: (row: T) => ReactNode; sort?: (row: T) => string | number; width?: string; numeric?: boolean }

const rowHeight = 34

// Table shows rows, sorted by a column; of many only those in view are in the document. j and k walk, Enter opens.
export function Table<T>({ label, rows, columns, open, id, stale }: {
  label: string; rows: T[]; columns: Column<T>[]; open?: (row: T) => void; id: (row: T) => string; stale?: (row: T) => boolean
}) {
  const [by, setBy] = useState<{ key: string; down: boolean } | null>(null)
  const [at, setAt] = useState(-1)
  const scroller = useRef<HTMLDivElement>(null)
  const sorted = useMemo(() => {
    const c = columns.find((c) => c.key === by?.key)
    if (!by || !c?.sort) return rows
    const value = c.sort
    const out = [...rows].sort((a, b) => {
      const x = value(a), y = value(b)
      return x < y ? -1 : x > y ? 1 : 0
    })
    return by.down ? out.reverse() : out
  }, [rows, by, columns])
  const virtual = useVirtualizer({ count: sorted.length, getScrollElement: () => scroller.current, estimateSize: () => rowHeight, overscan: 12, initialRect: { width: 800, height: 600 } })
  useEffect(() => {
    const keys = (e: KeyboardEvent) => {
      if (e.ctrlKey || e.metaKey || e.altKey || (e.target as HTMLElement).closest('input,textarea,select,[role=dialog]')) return
      if (e.key === 'j' || e.key === 'k') {
        const next = Math.min(sorted.length - 1, Math.max(0, at + (e.key === 'j' ? 1 : -1)))
        setAt(next)
        virtual.scrollToIndex(next)
      } else if (e.key === 'Enter' && at >= 0 && open && (e.target as HTMLElement).closest('a,button') === null) {
        const row = sorted[at]
        if (row) open(row)
      }
    }
    addEventListener('keydown', keys)
    return () => removeEventListener('keydown', keys)
  }, [sorted, at, open, virtual])
  const items = virtual.getVirtualItems()
  const before = items[0]?.start ?? 0
  const after = virtual.getTotalSize() - (items[items.length - 1]?.end ?? 0)
  return (
    <div className="scroller" ref={scroller} tabIndex={0} role="region" aria-label={label}>
      <table aria-label={label} aria-rowcount={sorted.length + 1}>
        <thead>
          <tr>
            {columns.map((c) => (
              <th key={c.key} scope="col" style={{ width: c.width }} className={c.numeric ? 'numeric' : undefined} aria-sort={by?.key === c.key ? (by.down ? 'descending' : 'ascending') : undefined}>
                {c.sort ? (
                  <button type="button" className="plain" onClick={() => setBy(by?.key === c.key ? { key: c.key, down: !by.down } : { key: c.key, down: !!c.numeric })}>
                    {c.title}
                    <span aria-hidden="true">{by?.key === c.key ? (by.down ? ' ↓' : ' ↑') : ''}</span>
                  </button>
                ) : c.title}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {before > 0 && <tr aria-hidden="true"><td colSpan={columns.length} style={{ height: before, padding: 0 }} /></tr>}
          {items.map((v) => {
            const row = sorted[v.index]!
            return (
              <tr
                key={id(row)} aria-rowindex={v.index + 2} className={(v.index === at ? 'at ' : '') + (stale?.(row) ? 'hatched ' : '') + (open ? 'opens' : '')}
                onClick={(e) => { if (open && (e.target as HTMLElement).closest('a,button') === null && !getSelection()?.toString()) open(row) }}
              >
                {columns.map((c) => <td key={c.key} className={c.numeric ? 'numeric' : undefined}>{c.cell(row)}</td>)}
              </tr>
            )
          })}
          {after > 0 && <tr aria-hidden="true"><td colSpan={columns.length} style={{ height: after, padding: 0 }} /></tr>}
        </tbody>
      </table>
      {sorted.length === 0 && <p className="dim">Nothing to show.</p>}
    </div>
  )
}

// Filter narrows what a page shows; "/" goes there.
export function Filter({ value, set, what }: { value: string; set: (v: string) => void; what: string }) {
  return <input type="search" className="filter" placeholder={`Filter ${what}   /`} aria-label={`Filter ${what}`} value={value} onChange={(e) => set(e.target.value)} />
}

export const matches = (q: string | undefined, ...fields: (string | undefined)[]) =>
  !q || q.toLowerCase().split(/\s+/).every((word) => fields.some((f) => f?.toLowerCase().includes(word)))
