// The UI in a real browser, on a made-up mesh: what a person sees, presses and reads.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { mkdirSync, readFileSync } from 'node:fs'
import { after, before, test } from 'node:test'
import { chromium } from 'playwright-core'

const root = new URL('../..', import.meta.url).pathname
const axe = readFileSync(new URL('node_modules/axe-core/axe.min.js', import.meta.url), 'utf8')
const pictures = process.env.AMBIT_UI_PICTURES // a folder: pictures for the documentation are made there
let server, browser, at

const started = () => new Promise((resolve, reject) => {
  server = spawn(root + 'bin/gloo-mesh-mgmt-server', ['--demo', 'small', '--ui-address', '127.0.0.1:0'], { stdio: ['ignore', 'inherit', 'pipe'] })
  let said = ''
  server.stderr.on('data', (d) => {
    said += d
    const m = /http:\/\/127\.0\.0\.1:\d+/.exec(said)
    if (m) resolve(m[0])
  })
  server.on('exit', (code) => reject(new Error(`the server ended with ${code}: ${said}`)))
})

before(async () => {
  at = await started()
  browser = await chromium.launch({ executablePath: process.env.AMBIT_TEST_CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox', '--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--disable-dev-shm-usage'] })
  if (pictures) mkdirSync(pictures, { recursive: true })
})
after(async () => {
  await browser?.close()
  server?.removeAllListeners('exit')
  server?.kill()
})

// open goes to a page in a fresh browser, and fails the test for whatever the browser complains about.
async function open(t, path, { theme = 'dark' } = {}) {
  const context = await browser.newContext({ viewport: { width: 1400, height: 900 }, colorScheme: theme, reducedMotion: 'reduce' })
  context.setDefaultTimeout(15_000)
  const page = await context.newPage()
  const complaints = []
  page.on('pageerror', (e) => complaints.push(e.message))
  page.on('console', (m) => { if (m.type() === 'error' && !m.text().includes('Failed to load resource')) complaints.push(m.text()) })
  t.after(async () => {
    await context.close()
    assert.deepEqual(complaints, [])
  })
  await page.goto(at + path)
  return page
}

const shown = ['now', 'map', 'trust', 'trace']
const pages = [
  ['/', 'now', 'Problems'], ['/map?level=service', 'map', 'Map'], ['/services', 'services', 'Services'], ['/clusters', 'clusters', 'Clusters'], ['/clusters/cluster-1', 'cluster', 'Membership'],
  ['/trust', 'trust', 'What ends first'], ['/policies', 'policies', 'Policies'], ['/policies/billing/billing-allow-payments', 'policy', 'Who may call'], ['/audit', 'audit', 'To keep, and to prove'],
  ['/segments', 'segments', 'gloo-mesh/productpage-global'], ['/traces', 'traces', 'Traces'], ['/traces/00000000000000000000000000000004', 'trace', 'Trace'],
  ['/telemetry', 'telemetry', 'Telemetry: what can we not see?'],
]

for (const theme of ['dark', 'light']) {
  for (const [path, name, heading] of pages) {
    test(`${name} in ${theme}: is there, and nothing bars anybody`, async (t) => {
      const page = await open(t, path, { theme })
      await page.getByRole('heading', { name: heading }).first().waitFor()
      await page.locator('header .state', { hasText: 'live' }).waitFor()
      await page.waitForLoadState('domcontentloaded')
      await page.evaluate(axe)
      const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ['violations'] }))
      assert.deepEqual(violations.map((v) => `${v.id}: ${v.nodes.slice(0, 3).map((n) => n.html.slice(0, 160)).join(' | ')}`), [])
      if (pictures && shown.includes(name)) await page.screenshot({ path: `${pictures}/${name}-${theme}.png` })
    })
  }
}

test('2 am: from the verdict to the service, the edge and the change that broke it', async (t) => {
  const page = await open(t, '/')
  const verdict = page.locator('h1')
  await page.getByText(/requests a second fail/).first().waitFor()
  assert.match(await verdict.innerText(), /^audit @ cluster-3: 1[12]\.\d% of .* fail/)
  await page.getByText(/likely:.*AccessPolicy billing\/billing-allow-payments by jane\.doe/).first().waitFor()
  await page.getByRole('link', { name: 'diff' }).first().click()
  await page.getByText('spec.config.authz.allowedClients[0].serviceAccountSelector.namespace').waitFor()
  await page.goBack()
  await page.getByRole('link', { name: 'audit @ cluster-3' }).first().click()
  await page.getByRole('button', { name: /^audit .*in cluster-3/ }).waitFor()
  await page.getByRole('button', { name: 'As a table' }).click()
  await page.getByText('failing').first().click()
  const drawer = page.getByRole('complementary', { name: 'Edge' })
  await drawer.getByText('Where the time goes').waitFor()
  await drawer.getByText(/% failed/).waitFor()
  await drawer.getByText('Who says so').waitFor()
  assert.match(page.url(), /edge=/)
  await drawer.getByRole('link', { name: /^Traces through/ }).waitFor()
  const before = await drawer.locator('h2').innerText()
  await page.reload() // everything is in the URL
  await drawer.getByText('Where the time goes').waitFor()
  assert.equal(await drawer.locator('h2').innerText(), before)
})

test('keyboard only', async (t) => {
  const page = await open(t, '/')
  await page.locator('header .state', { hasText: 'live' }).waitFor()
  await page.keyboard.press('g')
  await page.keyboard.press('c')
  await page.getByRole('heading', { name: 'Clusters' }).waitFor()
  await page.getByRole('link', { name: 'cluster-2' }).waitFor()
  await page.keyboard.press('/')
  await page.keyboard.type('cluster-2')
  await page.getByRole('link', { name: 'cluster-1' }).waitFor({ state: 'detached' })
  assert.match(page.url(), /q=cluster-2/)
  await page.keyboard.press('Escape')
  await page.keyboard.press('j')
  await page.keyboard.press('Enter')
  await page.getByRole('heading', { name: /^cluster-2/ }).waitFor()
  await page.keyboard.press('Escape')
  await page.getByRole('heading', { name: 'Clusters' }).waitFor()
  await page.keyboard.press('Control+k')
  await page.keyboard.type('billing-allow')
  await page.getByRole('option', { name: 'billing/billing-allow-payments' }).waitFor()
  await page.getByRole('option', { name: 'billing/billing-allow-payments' }).click()
  await page.getByRole('heading', { name: 'billing/billing-allow-payments' }).waitFor()
  await page.keyboard.press('?')
  await page.getByRole('dialog', { name: 'Keys' }).waitFor()
  await page.keyboard.press('Escape')
  await page.getByRole('dialog').waitFor({ state: 'detached' })
  await page.keyboard.press('t')
  await page.locator('html[data-theme=light]').waitFor()
})

test('the map: levels, neighbours by arrow keys, refused traffic is drawn', async (t) => {
  const page = await open(t, '/map?level=cluster')
  await page.getByRole('button', { name: /^cluster-1 .*in cluster-1/ }).click()
  await page.waitForURL(/level=namespace/)
  await page.getByRole('button', { name: 'services' }).click()
  const node = page.getByRole('button', { name: /^checkout .*in cluster-3/ })
  await node.focus()
  await page.keyboard.press('ArrowRight')
  const focused = await page.evaluate(() => document.activeElement?.getAttribute('data-node'))
  assert.ok(focused && !focused.includes('checkout'), `focus is on ${focused}`)
  assert.ok((await page.locator('g.edge.denied').count()) > 0, 'no refused traffic is drawn')
})

test('a server that goes away is said, and what was known stays', async (t) => {
  const page = await open(t, '/clusters')
  await page.getByRole('link', { name: 'cluster-1' }).waitFor()
  await page.context().setOffline(true)
  await page.evaluate(() => dispatchEvent(new Event('offline')))
  server.kill('SIGSTOP')
  t.after(() => server.kill('SIGCONT'))
  await page.getByRole('link', { name: 'cluster-1' }).waitFor()
  server.kill('SIGCONT')
  await page.context().setOffline(false)
  await page.locator('header .state', { hasText: 'live' }).waitFor()
})

test('what is unknown ends in a sentence', async (t) => {
  const page = await open(t, '/clusters/nobody')
  await page.getByText('no cluster nobody is registered').waitFor()
  await page.goto(at + '/nowhere')
  await page.getByRole('heading', { name: 'No such page' }).waitFor()
  await page.goto(at + '/map?level=neighbourhood&focus=a%2Fb%2Fc')
  await page.getByRole('alert').waitFor()
})

test('nothing in the document comes from elsewhere, and no token is in reach', async (t) => {
  const page = await open(t, '/')
  const asked = []
  page.on('request', (r) => asked.push(r.url()))
  await page.reload()
  await page.locator('header .state', { hasText: 'live' }).waitFor()
  assert.deepEqual(asked.filter((u) => !u.startsWith(at) && !u.startsWith('data:')), [])
  assert.deepEqual(await page.evaluate(() => [document.cookie, ...Object.keys(sessionStorage), ...Object.keys(localStorage).filter((k) => k !== 'theme')]), [''])
})

test('a trace over three clusters: lanes, inferred transit, a clock put right and back', async (t) => {
  const page = await open(t, '/traces')
  await page.getByRole('button', { name: 'With errors' }).click()
  await page.getByRole('link', { name: 'web GET /cart' }).first().click()
  await page.getByText('cluster-3 is shifted by', { exact: false }).waitFor()
  assert.equal(await page.getByRole('option').count(), 6)
  assert.ok((await page.locator('.transit').count()) > 0)
  await page.getByRole('listbox', { name: 'Spans' }).focus()
  await page.keyboard.press('ArrowDown')
  await page.getByRole('article', { name: 'Span' }).getByText('http.request.method').waitFor()
  await page.getByRole('button', { name: 'Times as they came' }).click()
  await page.getByText('cluster-3 is shifted by', { exact: false }).waitFor({ state: 'detached' })
  assert.match(page.url(), /raw=yes/)
})
