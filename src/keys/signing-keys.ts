import { createPrivateKey, generateKeyPair } from 'node:crypto';
import type { KeyObject } from 'node:crypto';
import { promisify } from 'node:util';
import type pg from 'pg';
import { BrokerError } from '../domain/errors.ts';
import type { Clock, Instant, Millis } from '../domain/time.ts';
import { thumbprint } from './jwk.ts';
import type { Jwks, PublicJwk } from './jwk.ts';
import { checkRotationSettings, latestExpiry, planRotation, signingKey } from './rotation.ts';
import type { RotationSettings } from './rotation.ts';
import type { SealContext, Sealer } from './seal.ts';
import { applyStep, loadKeys, lockRotation } from './store.ts';
import type { NewKey, StoredKey } from './store.ts';

export interface Signer {
  kid: string;
  key: KeyObject;
  /** Latest expiry of what is signed with it (design §3.4: no token outlives the publication of its key). */
  maxExpiry: Instant;
}

export interface KeyRing {
  /** Loads the keys and makes the first when there is none. Rejects when the broker could not sign. */
  start(): Promise<void>;
  /** Publishes, activates, retires and deletes what is due, and takes up what other replicas did. Call it every few seconds. */
  tick(): Promise<void>;
  /** From memory. Throws BrokerError PROVIDER_UNAVAILABLE when no key may sign now. */
  signer(now: Instant): Signer;
  maxExpiry(now: Instant): Instant;
  jwks(): Jwks;
  status(now: Instant): { ready: boolean; detail: string };
}

export interface KeyRingOptions extends RotationSettings {
  pool: pg.Pool;
  sealer: Sealer;
  clock: Clock;
  tenant: string;
  /** A replica whose clock is further than this from the database's rotates nothing. Unset: not looked at. */
  maxClockOffset?: Millis;
}

interface HeldKey extends StoredKey {
  key: KeyObject | undefined;
  /** Why `key` is missing although its state says that it signs. */
  problem: string | undefined;
}

const generate = promisify(generateKeyPair);

export function createKeyRing(options: KeyRingOptions): KeyRing {
  checkRotationSettings(options);
  const { pool, sealer, clock, tenant } = options;
  let held: readonly HeldKey[] = [];
  let signers = new Map<string, Signer>();
  let lastError: string | undefined = 'the signing keys are not loaded yet';
  let running: Promise<void> | undefined;

  async function rotate(): Promise<void> {
    const loaded = await loadKeys(pool, tenant);
    if (planRotation(loaded.keys, clock.now(), options).length === 0) return take(loaded.keys);
    const offset = Math.abs(loaded.databaseTime - clock.now());
    if (options.maxClockOffset !== undefined && offset > options.maxClockOffset) {
      take(loaded.keys);
      throw new Error(`this replica's clock is ${offset} ms from the database's; it leaves key rotation to others`);
    }
    const client = await pool.connect();
    let broken: Error | undefined;
    try {
      await client.query('BEGIN');
      await lockRotation(client, tenant);
      // Another replica may have done it while this one waited for the lock.
      const { keys } = await loadKeys(client, tenant);
      for (const step of planRotation(keys, clock.now(), options)) {
        await applyStep(client, tenant, step, clock.now(), step.do === 'create' ? await newKey() : undefined);
      }
      const after = await loadKeys(client, tenant);
      await client.query('COMMIT');
      take(after.keys);
    } catch (error) {
      broken = error instanceof Error ? error : new Error(String(error));
      await client.query('ROLLBACK').then(
        () => (broken = undefined),
        () => undefined,
      );
      throw error;
    } finally {
      client.release(broken);
    }
  }

  async function newKey(): Promise<NewKey> {
    const { privateKey, publicKey } = await generate('ec', { namedCurve: 'P-256' });
    const { x, y } = publicKey.export({ format: 'jwk' }) as { x: string; y: string };
    const kid = thumbprint(x, y);
    const publicJwk: PublicJwk = { kty: 'EC', crv: 'P-256', x, y, kid, alg: 'ES256', use: 'sig' };
    const pkcs8 = privateKey.export({ format: 'der', type: 'pkcs8' });
    const sealedPrivate = sealer.seal(pkcs8, sealContext(tenant, kid));
    pkcs8.fill(0);
    return { kid, publicJwk, sealedPrivate };
  }

  function take(keys: readonly StoredKey[]): void {
    const known = new Map(held.map((key) => [key.kid, key]));
    held = keys.map((stored) => ({ ...stored, ...openPrivate(stored, known.get(stored.kid)) }));
    signers = new Map(
      held.flatMap((k) =>
        k.key === undefined ? [] : [[k.kid, { kid: k.kid, key: k.key, maxExpiry: latestExpiry(k, options) }]],
      ),
    );
    lastError = held.find((key) => key.problem !== undefined)?.problem;
  }

  function openPrivate(stored: StoredKey, known: HeldKey | undefined): Pick<HeldKey, 'key' | 'problem'> {
    if (stored.sealedPrivate === null) return { key: undefined, problem: undefined };
    if (known?.key !== undefined) return { key: known.key, problem: undefined };
    try {
      const pkcs8 = sealer.open(stored.sealedPrivate, sealContext(tenant, stored.kid));
      const key = createPrivateKey({ key: pkcs8, format: 'der', type: 'pkcs8' });
      pkcs8.fill(0);
      return { key, problem: undefined };
    } catch (error) {
      return { key: undefined, problem: error instanceof Error ? error.message : 'the private half does not open' };
    }
  }

  function find(now: Instant): Signer | undefined {
    const key = signingKey(held, now, options);
    return key === undefined ? undefined : signers.get(key.kid);
  }

  async function tick(): Promise<void> {
    // One at a time: a tick that waits for the database must not pile up.
    running ??= rotate()
      .catch((error: unknown) => {
        lastError = error instanceof Error ? error.message : String(error);
        throw error;
      })
      .finally(() => (running = undefined));
    return await running;
  }

  function signer(now: Instant): Signer {
    const found = find(now);
    if (found === undefined) {
      throw new BrokerError(
        'PROVIDER_UNAVAILABLE',
        'the broker has no signing key that it may use now; retry, and if it lasts have an operator look at `signing-keys` in GetStatus',
        { cause: new Error(lastError ?? 'every key is retired or not yet active') },
      );
    }
    return found;
  }

  return {
    async start() {
      await tick();
      if (find(clock.now()) === undefined) {
        throw new Error(`no signing key can be used: ${lastError ?? 'none is active'}`);
      }
    },
    tick,
    signer,
    maxExpiry: (now) => signer(now).maxExpiry,
    jwks() {
      const now = clock.now();
      return { keys: held.filter((key) => key.deleteAt > now).map((key) => key.publicJwk) };
    },
    status(now) {
      const found = find(now);
      if (found === undefined) return { ready: false, detail: lastError ?? 'no key is active' };
      const times = held.find((key) => key.kid === found.kid)!;
      const late = now > times.retiresAt ? ', which is past its time and has no successor' : '';
      const detail = `${held.length} published, signing with ${found.kid}${late}`;
      return { ready: true, detail: lastError === undefined ? detail : `${detail}; last error: ${lastError}` };
    },
  };
}

function sealContext(tenant: string, kid: string): SealContext {
  return { tenant, purpose: 'signing-key', id: kid };
}
