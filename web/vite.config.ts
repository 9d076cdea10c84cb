import react from '@vitejs/plugin-react'
import { defineConfig } from 'vite'

// What is built is committed (../internal/ui/dist), so that Go alone builds the server.
export default defineConfig({
  plugins: [react()],
  build: { outDir: '../internal/ui/dist', emptyOutDir: true, target: 'es2023', assetsInlineLimit: 0, modulePreload: { polyfill: false } },
  server: { proxy: { '/api': 'http://127.0.0.1:8090' } },
})
