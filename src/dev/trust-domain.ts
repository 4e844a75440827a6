import { createHash, createPrivateKey, createPublicKey, generateKeyPairSync, randomBytes } from 'node:crypto';
import type { JsonWebKeyInput, KeyObject } from 'node:crypto';
import { link, mkdir, open, readFile, rename, rm, stat } from 'node:fs/promises';
import path from 'node:path';
import { SignJWT } from 'jose';
import { isTrustDomainName, parseSpiffeId } from '../attestors/spiffe-id.ts';
import type { Clock, Millis } from '../domain/time.ts';

/** A trust domain whose only authority is one key of ours. For development and tests. */
export interface SigningDomain {
  name: string;
  /** The SPIFFE bundle as JSON. */
  bundleJson(): string;
  mint(svid: { workload: string; audience: string | string[]; ttl: Millis }): Promise<string>;
  /** As `mint`, with whatever header and claims; a member that is undefined is left out. For tests of a verifier. */
  sign(claims: Record<string, unknown>, header?: Record<string, unknown>): Promise<string>;
  /** The key that signs now. For tests that forge what `sign` would not make. */
  signingKey(): { kid: string; privateKey: KeyObject };
  /** Signs with a new key from now on. The bundle holds the new one only, or the old ones too. */
  rotate(options?: { keepOld?: boolean }): void;
}

export interface DevTrustDomain extends Omit<SigningDomain, 'rotate' | 'sign' | 'signingKey'> {
  bundlePath: string;
  keyPath: string;
}

type PrivateJwk = Record<string, string>;

/** What makes a domain what it is; the newest key comes first and signs. */
interface DomainState {
  name: string;
  sequence: number;
  keys: PrivateJwk[];
}

const refreshHintSeconds = 60;

export function createSigningDomain(name: string, clock: Clock, initial?: DomainState): SigningDomain {
  checkName(name);
  const state = initial ?? { name, sequence: 1, keys: [newKey()] };

  const signingKey = () => {
    const jwk = state.keys[0]!;
    return { kid: jwk['kid']!, privateKey: createPrivateKey({ key: jwk, format: 'jwk' } as JsonWebKeyInput) };
  };
  const sign: SigningDomain['sign'] = (claims, header = {}) => {
    const { kid, privateKey } = signingKey();
    const protectedHeader = defined({ alg: 'ES256', typ: 'JWT', kid, ...header });
    return new SignJWT(defined(claims)).setProtectedHeader(protectedHeader as { alg: string }).sign(privateKey);
  };

  return {
    name,
    bundleJson: () => bundleOf(state),
    sign,
    signingKey,
    async mint({ workload, audience, ttl }) {
      if (parseSpiffeId(workload)?.trustDomain !== name) {
        throw new Error(`${workload}: not a workload's SPIFFE ID in ${name}, such as spiffe://${name}/agent`);
      }
      const now = Math.floor(clock.now() / 1000);
      return sign({ sub: workload, aud: [audience].flat(), iat: now, exp: now + Math.ceil(ttl / 1000) });
    },
    rotate({ keepOld = false } = {}) {
      state.keys = [newKey(), ...(keepOld ? state.keys : [])];
      state.sequence += 1;
    },
  };
}

/**
 * Opens the trust domain kept in a directory, or makes it there. The private key is in a file that only its owner may
 * read; whoever reads it can be any workload of the domain.
 */
export async function openDevTrustDomain(
  dir: string,
  name: string,
  clock: Clock = { now: () => Date.now() },
): Promise<DevTrustDomain> {
  // Before anything is kept under a name that could never be opened again.
  checkName(name);
  const keyPath = path.join(dir, 'trust-domain-key.json');
  const bundlePath = path.join(dir, 'bundle.json');
  await mkdir(dir, { recursive: true, mode: 0o700 });
  const state = (await readState(keyPath)) ?? (await createState(keyPath, name));
  if (state.name !== name) throw new Error(`${keyPath} belongs to the trust domain ${state.name}, not to ${name}`);
  const { bundleJson, mint } = createSigningDomain(name, clock, state);
  await replaceFile(bundlePath, bundleJson(), 0o644);
  return { name, keyPath, bundlePath, bundleJson, mint };
}

function checkName(name: string): void {
  if (!isTrustDomainName(name)) throw new Error(`${name}: not the name of a trust domain (a-z, 0-9, . _ -)`);
}

function newKey(): PrivateJwk {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const jwk = privateKey.export({ format: 'jwk' }) as PrivateJwk;
  // RFC 7638 §3: the thumbprint names the key, so that no two keys share a name.
  const { crv, kty, x, y } = jwk;
  const kid = createHash('sha256').update(JSON.stringify({ crv, kty, x, y })).digest('base64url');
  return { ...jwk, kid };
}

function bundleOf({ keys, sequence }: DomainState): string {
  const published = keys.map((jwk) => ({
    use: 'jwt-svid',
    kid: jwk['kid'],
    ...createPublicKey({ key: jwk, format: 'jwk' } as JsonWebKeyInput).export({ format: 'jwk' }),
  }));
  const bundle = { keys: published, spiffe_sequence: sequence, spiffe_refresh_hint: refreshHintSeconds };
  return `${JSON.stringify(bundle, null, 2)}\n`;
}

async function readState(keyPath: string): Promise<DomainState | undefined> {
  try {
    const { mode } = await stat(keyPath);
    if (process.platform !== 'win32' && (mode & 0o077) !== 0) {
      throw new Error(
        `${keyPath}: others may read this private key; run chmod 600 on it, or delete it to make a new one`,
      );
    }
    return parseState(await readFile(keyPath, 'utf8'), keyPath);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

/** An own message, because the JSON parser's would quote the private key. */
function parseState(text: string, keyPath: string): DomainState {
  try {
    const state = JSON.parse(text) as DomainState;
    createPrivateKey({ key: state.keys[0], format: 'jwk' } as JsonWebKeyInput);
    return state;
  } catch {
    throw new Error(`${keyPath}: not a key file of a development trust domain; delete it to make a new one`);
  }
}

async function createState(keyPath: string, name: string): Promise<DomainState> {
  const state: DomainState = { name, sequence: 1, keys: [newKey()] };
  const draft = await writeDraft(keyPath, JSON.stringify(state), 0o600);
  try {
    // A link is whole or not there, and of two processes that start at once only one can make it.
    await link(draft, keyPath);
    return state;
  } catch (error) {
    const other = (error as NodeJS.ErrnoException).code === 'EEXIST' ? await readState(keyPath) : undefined;
    if (other === undefined) throw error;
    return other;
  } finally {
    await rm(draft, { force: true });
  }
}

async function replaceFile(target: string, content: string, mode: number): Promise<void> {
  await rename(await writeDraft(target, content, mode), target);
}

async function writeDraft(target: string, content: string, mode: number): Promise<string> {
  const draft = `${target}.${randomBytes(6).toString('hex')}.tmp`;
  const file = await open(draft, 'wx', mode);
  try {
    await file.writeFile(content);
    await file.sync();
  } finally {
    await file.close();
  }
  return draft;
}

function defined(members: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined));
}
