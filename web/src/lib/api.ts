import { QueryClient, keepPreviousData, useQuery } from '@tanstack/react-query'
import { useEffect, useState } from 'react'

export const queries = new QueryClient({
  defaultOptions: { queries: { retry: 1, staleTime: 10_000, refetchOnWindowFocus: false, placeholderData: keepPreviousData } },
})

export class ApiError extends Error {
  constructor(readonly status: number, message: string) {
    super(message)
  }
}

async function get<T>(path: string): Promise<T> {
  let answer: Response
  try {
    answer = await fetch('/api/v1/' + path, { credentials: 'same-origin' })
  } catch {
    throw new ApiError(0, 'The management server does not answer. Is the port-forward still running? What is shown is the last that was known.')
  }
  const body = (await answer.json().catch(() => ({}))) as { error?: string }
  if (!answer.ok) throw new ApiError(answer.status, body.error ?? answer.statusText)
  return body as T
}

// useApi reads a path. The first word of the path is the topic under which the stream says that it has changed.
export function useApi<T>(path: string, options: { enabled?: boolean; every?: number } = {}) {
  return useQuery<T, ApiError>({
    queryKey: [path.split(/[/?]/)[0], path], queryFn: () => get<T>(path), enabled: options.enabled ?? true,
    refetchInterval: options.every ?? false,
  })
}

const shows: Record<string, string[]> = {
  clusters: ['clusters', 'trust', 'now', 'telemetry'], trust: ['trust', 'now'], policies: ['policies', 'now'], segments: ['segments', 'now'], topology: ['topology', 'edges', 'now', 'telemetry', 'services'],
}

export type Live = 'live' | 'away'

// useStream listens to what changes, and says whether the server is there.
export function useStream(): Live {
  const [live, setLive] = useState<Live>('away')
  useEffect(() => {
    const source = new EventSource('/api/v1/stream')
    source.onopen = () => setLive('live')
    source.onerror = () => setLive('away')
    source.addEventListener('changed', (e) => {
      const topics = JSON.parse((e as MessageEvent<string>).data) as string[]
      if (topics.includes('*')) {
        void queries.invalidateQueries({ predicate: (q) => q.queryKey[0] !== 'audit' })
        return
      }
      for (const topic of new Set(topics.flatMap((t) => shows[t] ?? [t]))) void queries.invalidateQueries({ queryKey: [topic] })
    })
    return () => source.close()
  }, [])
  return live
}
