import { writeFileSync } from 'node:fs';
import { mkdir, mkdtemp, rename, rm, symlink, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { fileBundle } from '../../../src/attestors/jwt-svid/file-bundle.ts';
import { httpsBundle } from '../../../src/attestors/jwt-svid/https-bundle.ts';
import type { HttpsBundleOptions } from '../../../src/attestors/jwt-svid/https-bundle.ts';
import { createRemoteKeys, refreshInterval } from '../../../src/attestors/keys/remote-keys.ts';
import { startHttpsEndpoint } from '../../support/bundle-server.ts';
import { createTestTrustDomain } from '../../support/svid.ts';
import { expectRefusal, manualClock } from '../attestor-forge.ts';
import { limits } from '../attestor-suite.ts';

const opened: { close(): Promise<void> }[] = [];
afterEach(async () => {
  for (const one of opened.splice(0).reverse()) await one.close();
});

describe('a bundle endpoint', () => {
  const open = async (change: Partial<HttpsBundleOptions> = {}, names?: string[]) => {
    const clock = manualClock();
    const domain = createTestTrustDomain('acme.test', clock);
    const endpoint = await startHttpsEndpoint(domain.bundleJson(), names);
    opened.push(endpoint);
    const bundle = httpsBundle({ url: endpoint.url, caFile: endpoint.caFile, clock, ...limits, ...change });
    opened.push(bundle);
    const look = async () => {
      clock.advance(limits.minRefresh);
      await bundle.refresh();
      return bundle.status(clock.now()).detail;
    };
    return { clock, domain, endpoint, bundle, look };
  };

  test('that no given root vouches for is not believed', async () => {
    const { bundle, clock } = await open({ caFile: undefined });
    await expectRefusal(bundle.keys(clock.now()), 'KEYS_STALE', /out of date/);
    expect(bundle.status(clock.now()).detail).toMatch(/certificate/);
  });

  test('is not believed either when the environment turns verification off', async () => {
    vi.stubEnv('NODE_TLS_REJECT_UNAUTHORIZED', '0');
    const { bundle, clock } = await open({ caFile: undefined });
    await expectRefusal(bundle.keys(clock.now()), 'KEYS_STALE', /out of date/);
    vi.unstubAllEnvs();
  });

  test('whose certificate names another host is not believed', async () => {
    const { bundle, clock } = await open({}, ['bundles.test']);
    await expectRefusal(bundle.keys(clock.now()), 'KEYS_STALE', /out of date/);
    expect(bundle.status(clock.now()).detail).toMatch(/altnames|does not match/i);
  });

  test('that redirects is not followed, and the last good keys stay', async () => {
    const { bundle, clock, endpoint, domain, look } = await open();
    await bundle.keys(clock.now());
    const other = await startHttpsEndpoint(domain.bundleJson());
    opened.push(other);
    for (const code of [301, 302, 303, 307, 308]) {
      endpoint.answer((_request, response) => response.writeHead(code, { location: other.url }).end());
      expect(await look()).toMatch(new RegExp(`answered ${code} \\(redirects are not followed\\)`));
    }
    expect(other.requests()).toBe(0);
    expect(await bundle.keys(clock.now())).toHaveLength(1);
  });

  test.each([204, 404, 500])('that answers %i with a bundle is not believed', async (code) => {
    const { bundle, clock, endpoint, domain, look } = await open();
    await bundle.keys(clock.now());
    const generation = bundle.generation();
    domain.rotate();
    endpoint.answer((_request, response) => response.writeHead(code).end(domain.bundleJson()));
    expect(await look()).toMatch(new RegExp(`answered ${code}`));
    expect(bundle.generation()).toBe(generation);
  });

  test('that never stops sending is cut off', async () => {
    const { bundle, clock, endpoint, look } = await open({ timeout: 30_000 });
    await bundle.keys(clock.now());
    endpoint.answer((_request, response) => {
      const more = () => {
        while (!response.destroyed && response.write(Buffer.alloc(65_536, ' ')));
      };
      response.on('drain', more);
      more();
    });
    expect(await look()).toMatch(/larger than 1048576 bytes/);
  });

  test.each<[string, Parameters<Awaited<ReturnType<typeof startHttpsEndpoint>>['answer']>[0]]>([
    ['nothing', () => undefined],
    ['half an answer', (_request, response) => void response.writeHead(200).write('{"keys":')],
  ])('that sends %s is given up after the time-out', async (_what, reply) => {
    const { bundle, clock, endpoint, look } = await open({ timeout: 100 });
    await vi.waitFor(async () => expect(await look()).toMatch(/^1 keys/));
    endpoint.answer(reply);
    expect(await look()).toMatch(/did not answer in time/);
    expect(await bundle.keys(clock.now())).toHaveLength(1);
  });

  test('is asked at most once per minRefresh, however many ask', async () => {
    const { bundle, clock, endpoint } = await open();
    await bundle.keys(clock.now());
    expect(endpoint.requests()).toBe(1);
    clock.advance(limits.minRefresh - 1);
    await Promise.all(Array.from({ length: 50 }, () => bundle.refresh()));
    expect(endpoint.requests()).toBe(1);
    clock.advance(1);
    await Promise.all(Array.from({ length: 50 }, () => bundle.refresh()));
    await bundle.refresh();
    expect(endpoint.requests()).toBe(2);
  });

  test('is asked no more often while it fails, and none waits for what is not asked', async () => {
    const { bundle, clock, endpoint } = await open();
    await bundle.keys(clock.now());
    endpoint.answer((_request, response) => response.writeHead(503).end());
    clock.advance(limits.staleAfter + 1);
    for (let call = 0; call < 20; call++) await expectRefusal(bundle.keys(clock.now()), 'KEYS_STALE', /out of date/);
    expect(endpoint.requests()).toBe(2);
  });

  test('is asked again although the clock was set back', async () => {
    const { bundle, clock, endpoint } = await open();
    await bundle.keys(clock.now());
    clock.advance(-3_600_000);
    await bundle.refresh();
    expect(endpoint.requests()).toBe(2);
  });

  test('is asked in the background, without any token', async () => {
    const { bundle, clock, endpoint, domain } = await open({ minRefresh: 20, staleAfter: 50 });
    await bundle.keys(clock.now());
    const generation = bundle.generation();
    domain.rotate();
    endpoint.answer(domain.bundleJson());
    await vi.waitFor(() => expect(bundle.generation()).toBeGreaterThan(generation));
  });

  test('that was down at the start is found when it comes up', async () => {
    const clock = manualClock();
    const domain = createTestTrustDomain('acme.test', clock);
    const endpoint = await startHttpsEndpoint((_request, response) => response.writeHead(503).end());
    opened.push(endpoint);
    const bundle = httpsBundle({ url: endpoint.url, caFile: endpoint.caFile, clock, ...limits, minRefresh: 20 });
    opened.push(bundle);
    await expectRefusal(bundle.keys(clock.now()), 'KEYS_STALE', /out of date/);
    endpoint.answer(domain.bundleJson());
    await vi.waitFor(() => expect(bundle.status(clock.now()).ready).toBe(true));
  });

  test('is asked no more once it is closed', async () => {
    const { bundle, clock, endpoint } = await open({ minRefresh: 5, staleAfter: 10 });
    await bundle.keys(clock.now());
    await bundle.close();
    const requests = endpoint.requests();
    clock.advance(1_000);
    await bundle.refresh();
    await expectRefusal(bundle.keys(clock.now()), 'KEYS_STALE', /out of date/);
    expect(endpoint.requests()).toBe(requests);
  });

  test('leaves no timer behind and starts nothing once it is closed, even amid an attempt', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    try {
      let loads = 0;
      const load = (signal: AbortSignal) => {
        loads += 1;
        return new Promise<never>((_resolve, reject) => signal.addEventListener('abort', () => reject(new Error('x'))));
      };
      const clock = manualClock();
      const keys = createRemoteKeys({ what: 'x', load, clock, ...limits });
      await keys.close();
      expect(vi.getTimerCount()).toBe(0);
      clock.advance(limits.minRefresh);
      await keys.refresh();
      expect(loads).toBe(1);
    } finally {
      vi.useRealTimers();
    }
  });

  test('that hangs does not hold up closing', async () => {
    const endpoint = await startHttpsEndpoint(() => undefined);
    opened.push(endpoint);
    const bundle = httpsBundle({
      url: endpoint.url,
      caFile: endpoint.caFile,
      clock: manualClock(),
      ...limits,
      timeout: 3_600_000,
    });
    await vi.waitFor(() => expect(endpoint.requests()).toBe(1));
    await bundle.close();
  });

  test.each([
    ['http://bundles.test/', /https/],
    ['http://127.0.0.1/', /https/],
    ['https://me:secret@bundles.test/', /user or password/],
    ['https://me@bundles.test/', /user or password/],
  ])('cannot be %s (SPIFFE Federation §5.2.1.1)', (url, sentence) => {
    let message = '';
    try {
      httpsBundle({ url, clock: manualClock(), ...limits });
    } catch (error) {
      message = (error as Error).message;
    }
    expect(message).toMatch(sentence);
    expect(message).not.toMatch(/secret/);
  });

  test('is asked as often as its hint says, within our bounds', () => {
    const bounds = { minRefresh: 10_000, staleAfter: 3_600_000 };
    expect(refreshInterval(60_000, bounds)).toBe(60_000);
    expect(refreshInterval(undefined, bounds)).toBe(300_000);
    expect(refreshInterval(1, bounds)).toBe(10_000);
    expect(refreshInterval(1e15, bounds)).toBe(1_800_000);
    expect(refreshInterval(1e15, { ...bounds, staleAfter: 1e15 })).toBe(86_400_000);
  });
});

describe('a bundle in a file', () => {
  const open = async (content?: string) => {
    const dir = await mkdtemp(path.join(tmpdir(), 'leasehold-bundle-'));
    opened.push({ close: () => rm(dir, { recursive: true, force: true }) });
    const file = path.join(dir, 'bundle.json');
    if (content !== undefined) await writeFile(file, content);
    const clock = manualClock();
    const bundle = fileBundle({ path: file, clock, pollMs: 20, staleAfter: limits.staleAfter });
    opened.push(bundle);
    return { dir, file, clock, bundle };
  };
  const domain = createTestTrustDomain('acme.test');

  test('is noticed when it changes, without any token', async () => {
    const { file, bundle, clock } = await open(domain.bundleJson());
    await bundle.keys(clock.now());
    const generation = bundle.generation();
    domain.rotate();
    await domain.writeBundle(file);
    await vi.waitFor(() => expect(bundle.generation()).toBeGreaterThan(generation));
  });

  test('is read anew for whoever asks, not shared with a reader who began before it changed', async () => {
    const { file, bundle, clock } = await open(domain.bundleJson());
    await bundle.keys(clock.now());
    for (let round = 0; round < 50; round++) {
      const early = bundle.refresh();
      // At another point of the early read each time.
      for (let turn = 0; turn < round % 8; turn++) await new Promise(setImmediate);
      domain.rotate();
      writeFileSync(file, domain.bundleJson());
      await bundle.refresh();
      expect((await bundle.keys(clock.now())).map(({ kid }) => kid)).toEqual([domain.signingKey().kid]);
      await early;
    }
  });

  test('is noticed when a symbolic link is swung over, as Kubernetes does', async () => {
    const { dir, clock } = await open();
    for (const version of ['one', 'two']) {
      await mkdir(path.join(dir, version));
      await domain.writeBundle(path.join(dir, version, 'bundle.json'));
      domain.rotate();
    }
    await symlink('one', path.join(dir, 'current'));
    const bundle = fileBundle({ path: path.join(dir, 'current', 'bundle.json'), clock, pollMs: 20 });
    opened.push(bundle);
    await bundle.keys(clock.now());
    const generation = bundle.generation();
    await symlink('two', path.join(dir, 'next'));
    await rename(path.join(dir, 'next'), path.join(dir, 'current'));
    await vi.waitFor(() => expect(bundle.generation()).toBeGreaterThan(generation));
  });

  test('that is not there yet refuses every token, says so, and is found when it appears', async () => {
    const { file, bundle, clock } = await open();
    await expectRefusal(bundle.keys(clock.now()), 'KEYS_STALE', /out of date/);
    expect(bundle.status(clock.now())).toMatchObject({ ready: false, detail: expect.stringMatching(/ENOENT/) });
    await domain.writeBundle(file);
    await vi.waitFor(() => expect(bundle.status(clock.now()).ready).toBe(true));
  });

  test('with a key in it by mistake does not appear in the status', async () => {
    const { bundle, clock } = await open('-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMG\n');
    await bundle.refresh();
    expect(bundle.status(clock.now()).detail).toMatch(/is not JSON/);
    expect(bundle.status(clock.now()).detail).not.toMatch(/BEGIN|MIGH/);
  });

  test('that is too large is refused without being read', async () => {
    const { file, bundle, clock } = await open('');
    // Sparse: it takes no room, but reading it would fail in another way.
    await truncate(file, 3 * 1024 ** 3);
    await bundle.refresh();
    await bundle.refresh();
    expect(bundle.status(clock.now()).detail).toMatch(/larger than 1048576 bytes/);
  });

  test('that is a directory or endless is refused', async () => {
    const clock = manualClock();
    for (const [file, detail] of [
      ['/dev/zero', /not a regular file/],
      [tmpdir(), /EISDIR|not a regular file/],
    ] as const) {
      const bundle = fileBundle({ path: file, clock, pollMs: 20 });
      opened.push(bundle);
      await bundle.refresh();
      expect(bundle.status(clock.now()).detail).toMatch(detail);
    }
  });
});
