import type { KeyObject } from 'node:crypto';
import { rename, writeFile } from 'node:fs/promises';
import type { Clock } from '../../src/domain/time.ts';
import { createSigningDomain } from '../../src/dev/trust-domain.ts';

export interface MintOptions {
  sub: string;
  aud: string | string[];
  /** Default: five minutes. */
  ttlMs?: number;
  /** Merged into the header; a member set to undefined is left out. */
  header?: Record<string, unknown>;
  /** Any further claim replaces the usual one, and undefined leaves it out: `exp: undefined`. */
  [claim: string]: unknown;
}

export interface TestTrustDomain {
  name: string;
  bundleJson(): string;
  /** Replaces the file in one step. */
  writeBundle(path: string): Promise<void>;
  mint(options: MintOptions): Promise<string>;
  /** The key that signs now, for forging what `mint` would not make. */
  signingKey(): { kid: string; privateKey: KeyObject };
  /** Signs with a new key from now on; the old one leaves the bundle unless it is kept. */
  rotate(options?: { keepOld?: boolean }): void;
}

/** A trust domain in memory: its own key, real JWT-SVIDs, a real bundle. */
export function createTestTrustDomain(name: string, clock: Clock = { now: () => Date.now() }): TestTrustDomain {
  const domain = createSigningDomain(name, clock);
  return {
    name,
    bundleJson: domain.bundleJson,
    rotate: domain.rotate,
    signingKey: domain.signingKey,
    writeBundle: (path) => writeWhole(path, domain.bundleJson()),
    mint({ sub, aud, ttlMs = 300_000, header, ...claims }) {
      const now = Math.floor(clock.now() / 1000);
      return domain.sign({ sub, aud, iat: now, exp: now + Math.ceil(ttlMs / 1000), ...claims }, header);
    },
  };
}

/** Nobody ever reads half of it. */
export async function writeWhole(path: string, content: string): Promise<void> {
  await writeFile(`${path}.new`, content);
  await rename(`${path}.new`, path);
}
