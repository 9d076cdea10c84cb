// Words and numbers as people read them.

export function age(at: string | undefined, now: number): string {
  if (!at || at.startsWith('0001')) return 'never'
  const s = Math.max(0, Math.round((now - Date.parse(at)) / 1000))
  if (s < 60) return `${s} s`
  if (s < 3600) return `${Math.floor(s / 60)} min`
  if (s < 48 * 3600) return `${Math.floor(s / 3600)} h`
  return `${Math.floor(s / 86400)} d`
}

export function left(until: string | undefined, now: number): string {
  if (!until) return 'unknown'
  const s = Math.round((Date.parse(until) - now) / 1000)
  if (s <= 0) return 'ended'
  if (s < 3600) return `${Math.floor(s / 60)} min`
  if (s < 48 * 3600) return `${Math.floor(s / 3600)} h`
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`
}

export function time(at: string | undefined): string {
  if (!at) return ''
  const d = new Date(at)
  return d.toISOString().slice(0, 19).replace('T', ' ') + ' UTC'
}

export function clock(at: string | number): string {
  return new Date(at).toISOString().slice(11, 19)
}

export function rate(n: number | null | undefined): string {
  if (n == null) return 'unknown'
  if (n >= 1000) return `${(n / 1000).toPrecision(2)}k/s`
  return `${n >= 100 ? Math.round(n) : Number(n.toPrecision(2))}/s`
}

export function ms(n: number | null | undefined): string {
  if (n == null) return 'not measured'
  return n >= 1000 ? `${(n / 1000).toPrecision(2)} s` : `${Number(n.toPrecision(2))} ms`
}

export function percent(n: number | null | undefined): string {
  if (n == null) return 'unknown'
  const p = n * 100
  return `${p === 0 ? '0' : p < 1 ? p.toFixed(2) : p.toFixed(1)} %`
}

export function bytes(n: number | null | undefined): string {
  if (n == null) return 'unknown'
  const units = ['B', 'kB', 'MB', 'GB']
  let i = 0
  let v = n
  while (v >= 1000 && i < units.length - 1) {
    v /= 1000
    i++
  }
  return `${Number(v.toPrecision(2))} ${units[i]}/s`
}

export const short = (fingerprint: string | undefined) => (fingerprint ? fingerprint.slice(0, 12) : '')
