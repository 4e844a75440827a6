import { chmod, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { createJwtSvidAttestor } from '../../../src/attestors/jwt-svid/attestor.ts';
import { fileBundle } from '../../../src/attestors/jwt-svid/file-bundle.ts';
import { openDevTrustDomain } from '../../../src/dev/trust-domain.ts';

describe('the development trust domain', () => {
  let dir: string;
  beforeEach(async () => {
    dir = await mkdtemp(path.join(tmpdir(), 'leasehold-dev-'));
  });
  afterEach(() => rm(dir, { recursive: true, force: true }));

  const clock = { now: () => Date.now() };
  const svid = { workload: 'spiffe://dev.test/agent', audience: 'leasehold', ttl: 60_000 };

  test('mints SVIDs that its bundle file verifies, also after it was opened again', async () => {
    const first = await openDevTrustDomain(path.join(dir, 'td'), 'dev.test');
    const token = await first.mint(svid);
    const again = await openDevTrustDomain(path.join(dir, 'td'), 'dev.test');
    expect(again.bundleJson()).toBe(first.bundleJson());
    const attestor = createJwtSvidAttestor({
      ...{ trustDomain: 'dev.test', tenant: 'dev', audiences: ['leasehold'], maxLifetime: 60_000, skew: 0 },
      bundle: fileBundle({ path: again.bundlePath, clock }),
    });
    for (const text of [token, await again.mint(svid)]) {
      expect(await attestor.attest(text, clock.now())).toMatchObject({ workload: svid.workload, tenant: 'dev' });
    }
    await attestor.close();
  });

  test('keeps its key for its owner alone, and publishes no private part', async () => {
    const { keyPath, bundlePath } = await openDevTrustDomain(path.join(dir, 'td'), 'dev.test');
    expect((await stat(keyPath)).mode & 0o777).toBe(0o600);
    expect((await stat(path.join(dir, 'td'))).mode & 0o777).toBe(0o700);
    const bundle = JSON.parse(await readFile(bundlePath, 'utf8')) as { keys: Record<string, unknown>[] };
    expect(Object.keys(bundle.keys[0]!).sort()).toEqual(['crv', 'kid', 'kty', 'use', 'x', 'y']);
    expect((await readdir(path.join(dir, 'td'))).sort()).toEqual(['bundle.json', 'trust-domain-key.json']);
  });

  test('is one domain, though several processes open it at once', async () => {
    const all = await Promise.all(Array.from({ length: 8 }, () => openDevTrustDomain(dir, 'dev.test')));
    expect(new Set(all.map((domain) => domain.bundleJson())).size).toBe(1);
  });

  test('refuses a key that others may read, a file that is no key, and another name, quoting none of it', async () => {
    const { keyPath } = await openDevTrustDomain(dir, 'dev.test');
    await expect(openDevTrustDomain(dir, 'other.test')).rejects.toThrow(/belongs to the trust domain dev.test/);
    await chmod(keyPath, 0o640);
    await expect(openDevTrustDomain(dir, 'dev.test')).rejects.toThrow(/others may read/);
    await chmod(keyPath, 0o600);
    await writeFile(keyPath, '{"d":"canary-secret"');
    const refusal = await openDevTrustDomain(dir, 'dev.test').catch((error: unknown) => error as Error);
    expect((refusal as Error).message).toMatch(/not a key file/);
    expect(`${(refusal as Error).message} ${String((refusal as Error).cause)}`).not.toMatch(/canary/);
  });

  test('mints only for workloads of its own', async () => {
    const domain = await openDevTrustDomain(dir, 'dev.test');
    for (const workload of ['spiffe://other.test/agent', 'agent', 'spiffe://dev.test', 'spiffe://dev.test/a/../b']) {
      await expect(domain.mint({ ...svid, workload })).rejects.toThrow(/not a workload's SPIFFE ID in dev.test/);
    }
    const elsewhere = path.join(dir, 'elsewhere');
    await expect(openDevTrustDomain(elsewhere, 'Dev/Test')).rejects.toThrow(/not the name of a trust domain/);
    await openDevTrustDomain(elsewhere, 'dev.test');
  });
});
