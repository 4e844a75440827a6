import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createJwtSvidAttestor } from '../../../src/attestors/jwt-svid/attestor.ts';
import { fileBundle } from '../../../src/attestors/jwt-svid/file-bundle.ts';
import { httpsBundle } from '../../../src/attestors/jwt-svid/https-bundle.ts';
import type { KeySource } from '../../../src/attestors/keys/key-source.ts';
import { startHttpsEndpoint } from '../../support/bundle-server.ts';
import { createTestTrustDomain, writeWhole } from '../../support/svid.ts';
import { manualClock } from '../attestor-forge.ts';
import { audience, limits } from '../attestor-suite.ts';
import type { AttestorFixture } from '../attestor-suite.ts';

export interface SvidFixture extends AttestorFixture {
  source: KeySource;
  publish(bundle: string): Promise<void>;
  domain: ReturnType<typeof createTestTrustDomain>;
}

interface Publication {
  source: KeySource;
  publish(bundle: string): Promise<void>;
  breakDown(): Promise<void>;
  close(): Promise<void>;
}

export const emptyBundle = JSON.stringify({ keys: [], spiffe_sequence: 1_000 });

async function svidFixture(open: (bundle: string, clock: ReturnType<typeof manualClock>) => Promise<Publication>) {
  const clock = manualClock();
  const domain = createTestTrustDomain('acme.test', clock);
  const { source, publish, breakDown, close } = await open(domain.bundleJson(), clock);
  const attestor = createJwtSvidAttestor({
    trustDomain: 'acme.test',
    tenant: 'acme',
    audiences: ['x', audience],
    bundle: source,
    ...limits,
  });
  const sub = 'spiffe://acme.test/agents/reporter';
  const fixture: SvidFixture = {
    attestor,
    clock,
    domain,
    source,
    publish,
    breakDown,
    expected: { workload: sub, tenant: 'acme', kind: 'jwt-svid', issuer: 'acme.test' },
    genuine: () => domain.mint({ sub, aud: audience }),
    identity: { sub },
    elsewhere: { claims: { sub: 'spiffe://other.test/agents/reporter' }, reason: 'ISSUER_UNKNOWN' },
    signingKey: domain.signingKey,
    async rotate(options) {
      domain.rotate(options);
      await publish(domain.bundleJson());
    },
    empty: () => publish(emptyBundle),
    mend: () => publish(domain.bundleJson()),
    async close() {
      await attestor.close();
      await close();
    },
  };
  return fixture;
}

export function fileFixture(): Promise<SvidFixture> {
  return svidFixture(async (bundle, clock) => {
    const dir = await mkdtemp(path.join(tmpdir(), 'leasehold-bundle-'));
    const file = path.join(dir, 'bundle.json');
    await writeWhole(file, bundle);
    return {
      source: fileBundle({ path: file, clock, pollMs: 20, staleAfter: limits.staleAfter }),
      publish: (next) => writeWhole(file, next),
      breakDown: () => writeWhole(file, bundle.slice(0, 40)),
      close: () => rm(dir, { recursive: true, force: true }),
    };
  });
}

export function httpsFixture(): Promise<SvidFixture> {
  return svidFixture(async (bundle, clock) => {
    const endpoint = await startHttpsEndpoint(bundle);
    return {
      source: httpsBundle({ url: `${endpoint.url}/bundle`, caFile: endpoint.caFile, clock, ...limits }),
      publish: async (next) => endpoint.answer(next),
      breakDown: async () => endpoint.answer((request) => request.socket.destroy()),
      close: () => endpoint.close(),
    };
  });
}
