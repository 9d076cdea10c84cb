import { QueryClientProvider } from '@tanstack/react-query'
import { RouterProvider } from '@tanstack/react-router'
import { StrictMode } from 'react'
import { createRoot } from 'react-dom/client'
import { queries } from './lib/api'
import { Ticking } from './lib/parts'
import { router } from './routes'
import './style.css'

createRoot(document.getElementById('root')!).render(
  <StrictMode>
    <QueryClientProvider client={queries}>
      <Ticking>
        <RouterProvider router={router} />
      </Ticking>
    </QueryClientProvider>
  </StrictMode>,
)
