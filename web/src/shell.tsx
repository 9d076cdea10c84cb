// The frame of every page: where one is, whether what is shown is alive, and the keys.
import { Link, Outlet, useNavigate, useRouterState } from '@tanstack/react-router'
import { Command as Palette } from 'cmdk'
import { Dialog } from 'radix-ui'
import { useEffect, useState } from 'react'
import { useApi, useStream } from './lib/api'
import { Copy, State, useNow } from './lib/parts'
import { clock } from './lib/text'
import type { About, Cluster, List, Policy } from './lib/types'

const pages = [
  { to: '/', name: 'Now', key: 'n' }, { to: '/map', name: 'Map', key: 'm' }, { to: '/services', name: 'Services', key: 's' }, { to: '/traces', name: 'Traces', key: 't' }, { to: '/clusters', name: 'Clusters', key: 'c' },
  { to: '/trust', name: 'Trust', key: 'r' }, { to: '/policies', name: 'Policies', key: 'p' }, { to: '/segments', name: 'Segments', key: 'l' }, { to: '/audit', name: 'Audit', key: 'a' }, { to: '/telemetry', name: 'Telemetry', key: 'e' },
] as const

const keys: [string, string][] = [
  ['Ctrl K', 'go anywhere: paste a cluster, policy, host, SPIFFE ID or serial number'], ['/', 'filter this page'], ['j  k', 'next and previous row'], ['Enter', 'open the row'], ['Esc', 'close, or go up'],
  ...pages.map((p): [string, string] => [`g ${p.key}`, p.name]), ['t', 'dark or light'], ['?', 'this list'],
]

type Theme = 'dark' | 'light'

function useTheme(): [Theme, () => void] {
  const [theme, set] = useState<Theme>(() => (localStorage.getItem('theme') as Theme | null) ?? (matchMedia('(prefers-color-scheme: light)').matches ? 'light' : 'dark'))
  useEffect(() => {
    document.documentElement.dataset.theme = theme
  }, [theme])
  return [theme, () => set((t) => {
    const next = t === 'dark' ? 'light' : 'dark'
    localStorage.setItem('theme', next)
    return next
  })]
}

export function Shell() {
  const live = useStream()
  const now = useNow()
  const [theme, toggle] = useTheme()
  const [palette, setPalette] = useState(false)
  const [help, setHelp] = useState(false)
  const navigate = useNavigate()
  const path = useRouterState({ select: (s) => s.location.pathname })
  const about = useApi<About>('about')
  useEffect(() => {
    document.title = (pages.find((p) => p.to !== '/' && path.startsWith(p.to))?.name ?? 'Now') + ' · Ambit'
  }, [path])
  useEffect(() => {
    let first = ''
    const down = (e: KeyboardEvent) => {
      if ((e.ctrlKey || e.metaKey) && e.key.toLowerCase() === 'k') {
        e.preventDefault()
        setPalette((p) => !p)
        return
      }
      const target = e.target as HTMLElement
      if (e.key === 'Escape' && target.closest('input')) {
        e.preventDefault() // the browser would clear it
        target.blur()
      }
      if (e.ctrlKey || e.metaKey || e.altKey || target.closest('input,textarea,select,[role=dialog]')) return
      if (first === 'g') {
        first = ''
        const p = pages.find((p) => p.key === e.key)
        if (p) void navigate({ to: p.to })
        return
      }
      switch (e.key) {
        case 'g':
          first = 'g'
          setTimeout(() => (first = ''), 1200)
          break
        case '/':
          e.preventDefault()
          document.querySelector<HTMLInputElement>('input.filter')?.focus()
          break
        case '?':
          setHelp(true)
          break
        case 't':
          toggle()
          break
        case 'Escape': {
          const up = path.split('/').slice(0, -1)
          if (path.startsWith('/policies/') || path.startsWith('/clusters/') || path.startsWith('/traces/')) void navigate({ to: ('/' + (up[1] ?? '')) as '/' })
          break
        }
      }
    }
    addEventListener('keydown', down)
    return () => removeEventListener('keydown', down)
  }, [navigate, path, toggle])
  return (
    <>
      <a className="skip" href="#main">Skip to the page</a>
      <header>
        <span className="brand">Ambit</span>
        <nav aria-label="Pages">
          {pages.map((p) => (
            <Link key={p.to} to={p.to} activeOptions={{ exact: p.to === '/' }} activeProps={{ 'aria-current': 'page' }} title={`g ${p.key}`}>
              {p.name}
            </Link>
          ))}
        </nav>
        <span className="spacer" />
        {about.data?.demo && <span className="demo" title="Nothing here is real: it is made up.">demo data</span>}
        <span className="clock">{clock(now)} UTC</span>
        {live === 'live' ? <State of="ok" text="live" /> : <State of="stale" text="no connection" title="The management server is not heard: what is shown is the last that was known." />}
        <Copy text={location.href} label="Copy link" />
        <button type="button" className="small" onClick={() => setPalette(true)} aria-keyshortcuts="Control+K">Go to … <kbd>Ctrl K</kbd></button>
        <button type="button" className="small" onClick={toggle} aria-label={`Switch to ${theme === 'dark' ? 'light' : 'dark'}`}>{theme === 'dark' ? 'Light' : 'Dark'}</button>
        <button type="button" className="small" onClick={() => setHelp(true)} aria-label="Keyboard shortcuts">?</button>
      </header>
      <main id="main" tabIndex={-1} className={live === 'live' ? undefined : 'away'}>
        <Outlet />
      </main>
      <GoTo open={palette} close={() => setPalette(false)} />
      <Dialog.Root open={help} onOpenChange={setHelp}>
        <Dialog.Portal>
          <Dialog.Overlay className="overlay" />
          <Dialog.Content className="dialog" aria-describedby={undefined}>
            <Dialog.Title>Keys</Dialog.Title>
            <dl className="keys">
              {keys.map(([k, what]) => (
                <div key={k + what}>
                  <dt><kbd>{k}</kbd></dt>
                  <dd>{what}</dd>
                </div>
              ))}
            </dl>
            <p className="dim">This UI changes nothing: it shows, and gives commands to copy. Version {about.data?.version}.</p>
            <Dialog.Close className="small">Close</Dialog.Close>
          </Dialog.Content>
        </Dialog.Portal>
      </Dialog.Root>
    </>
  )
}

// GoTo takes whatever is typed or pasted.
function GoTo({ open, close }: { open: boolean; close: () => void }) {
  const [typed, setTyped] = useState('')
  const navigate = useNavigate()
  const clusters = useApi<List<Cluster>>('clusters', { enabled: open })
  const policies = useApi<List<Policy>>('policies', { enabled: open })
  const go = (to: string) => {
    close()
    setTyped('')
    void navigate({ to: to as '/' })
  }
  const word = typed.trim()
  const spiffe = /^(?:spiffe:\/\/)?[^/\s]+\/ns\/([^/]+)\/sa\/([^/\s]+)$/.exec(word)
  const serial = /^[0-9a-f:]{16,}$/i.test(word) ? word.replaceAll(':', '').toLowerCase() : ''
  const guesses: { to: string; text: string }[] = []
  if (/^[0-9a-f]{32}$/i.test(word)) guesses.push({ to: `/traces/${word.toLowerCase()}`, text: `Trace ${word.toLowerCase()}` })
  if (spiffe) guesses.push({ to: `/map?level=service&namespace=${encodeURIComponent(spiffe[1]!)}&q=${encodeURIComponent(spiffe[2]!)}`, text: `Traffic of service account ${spiffe[2]} in namespace ${spiffe[1]}` })
  if (serial) guesses.push({ to: `/trust?q=${serial}`, text: `Certificate with serial number or fingerprint ${serial.slice(0, 16)}…` })
  if (word) {
    guesses.push(
      { to: `/services?q=${encodeURIComponent(word)}`, text: `Services that match “${word}”` }, { to: `/audit?name=${encodeURIComponent(word)}`, text: `Who changed “${word}”` },
      { to: `/audit?user=${encodeURIComponent(word)}`, text: `What user “${word}” did` },
    )
  }
  return (
    <Dialog.Root open={open} onOpenChange={(o) => { if (!o) close() }}>
      <Dialog.Portal>
        <Dialog.Overlay className="overlay" />
        <Dialog.Content className="dialog palette" aria-describedby={undefined}>
          <Dialog.Title className="hidden">Go to</Dialog.Title>
          <Palette label="Go to" shouldFilter loop>
            <Palette.Input placeholder="Type or paste anything: a cluster, a policy, a host, a SPIFFE ID, a serial number" value={typed} onValueChange={setTyped} />
            <Palette.List>
              <Palette.Empty>Nothing is called so.</Palette.Empty>
              {guesses.length > 0 && (
                <Palette.Group heading="Look for it">
                  {guesses.map((g) => <Palette.Item key={g.to} value={word + ' ' + g.text} onSelect={() => go(g.to)}>{g.text}</Palette.Item>)}
                </Palette.Group>
              )}
              <Palette.Group heading="Pages">
                {pages.map((p) => <Palette.Item key={p.to} value={'page ' + p.name} onSelect={() => go(p.to)}>{p.name}</Palette.Item>)}
              </Palette.Group>
              <Palette.Group heading="Clusters">
                {clusters.data?.items.slice(0, 200).map((c) => <Palette.Item key={c.name} value={'cluster ' + c.name} onSelect={() => go('/clusters/' + c.name)}>{c.name}</Palette.Item>)}
              </Palette.Group>
              <Palette.Group heading="Policies">
                {policies.data?.items.slice(0, 200).map((p) => (
                  <Palette.Item key={p.namespace + '/' + p.name} value={`policy ${p.namespace}/${p.name}`} onSelect={() => go(`/policies/${p.namespace}/${p.name}`)}>{p.namespace}/{p.name}</Palette.Item>
                ))}
              </Palette.Group>
            </Palette.List>
          </Palette>
        </Dialog.Content>
      </Dialog.Portal>
    </Dialog.Root>
  )
}

export function NotFound() {
  return (
    <section>
      <h1>No such page</h1>
      <p>
        Nothing is at this address. <Link to="/">Go to Now</Link>
      </p>
    </section>
  )
}
