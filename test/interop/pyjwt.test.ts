import { execFile, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, rename, rm } from 'node:fs/promises';
import { tmpdir, userInfo } from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import { beforeAll, describe, expect, test } from 'vitest';
import { createJwtProvider } from '../../src/providers/jwt/provider.ts';
import { statusReferences } from '../../src/providers/jwt/status-list.ts';
import type { ToolTier } from '../../src/domain/policy.ts';
import { makeGrant, secretOf } from '../contract/provider-suite.ts';
import { memoryKeyRing } from '../contract/providers/memory-key-ring.ts';

const run = promisify(execFile);
const packages = ['pyjwt==2.10.1', 'cryptography==44.0.3'];
const script = path.join(import.meta.dirname, 'verify.py');

const version = await run('python3', ['-c', 'import sys; print("%d.%d" % sys.version_info[:2])'], {
  timeout: 20_000,
}).then(
  ({ stdout }) => stdout.trim(),
  () => undefined,
);
const must = process.env['CI'] === 'true';
if (version === undefined) {
  console.warn('SKIPPED: there is no python3 here, so tokens were NOT verified by a second implementation (pyjwt).');
}

/** Made once per machine and set of versions: it takes a while, and it needs the package registry. */
async function environment(): Promise<string> {
  const name = `leasehold-pyjwt-${userInfo().uid}-${version}-${packages.join('-').replaceAll(/[^\w.-]/g, '')}`;
  const cached = path.join(tmpdir(), name);
  const python = (dir: string) => path.join(dir, 'bin', 'python');
  if (existsSync(path.join(cached, 'ready'))) return python(cached);
  // Made aside and moved into place, so that two runs at once cannot see half of it.
  const made = await mkdtemp(`${cached}-`);
  try {
    await run('python3', ['-m', 'venv', made], { timeout: 120_000 });
    await run(python(made), ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', ...packages], {
      timeout: 240_000,
    });
    await run(python(made), [
      '-c',
      `import jwt, cryptography, pathlib, sys; pathlib.Path(sys.prefix, "ready").touch()`,
    ]);
    await rename(made, cached);
  } catch (error) {
    await rm(made, { recursive: true, force: true });
    if (!existsSync(path.join(cached, 'ready'))) throw error;
  }
  return python(cached);
}

async function verifyInPython(
  python: string,
  given: object,
): Promise<{ code: number | null; out: string; err: string }> {
  return await new Promise((resolve, reject) => {
    const child = spawn(python, [script], { timeout: 60_000 });
    let out = '';
    let err = '';
    child.stdout.on('data', (chunk) => (out += String(chunk)));
    child.stderr.on('data', (chunk) => (err += String(chunk)));
    child.once('error', reject);
    child.once('close', (code) => resolve({ code, out, err }));
    child.stdin.end(JSON.stringify(given));
  });
}

describe.skipIf(version === undefined && !must)('pyjwt, a verifier in another language', () => {
  const issuer = 'https://broker.example.org';
  const audience = 'https://orders.example.org';
  const keyRing = memoryKeyRing();
  const provider = createJwtProvider({
    clock: { now: Date.now },
    issuers: new Map([['default', { issuer, keyRing, statusListUri: statusReferences(`${issuer}/status`) }]]),
  });
  const tier: ToolTier = {
    provider: 'jwt',
    revocation: 'immediate',
    ttl: { min: 1_000, default: 300_000, max: 900_000 },
    actions: ['orders.list'],
    options: {},
  };
  let python: string;

  beforeAll(async () => {
    if (version === undefined)
      throw new Error('CI needs python3: tokens have to be verified by a second implementation');
    python = await environment();
  }, 400_000);

  test('accepts a token of the broker by its JWKS alone, and reads the same claims', async () => {
    const grant = makeGrant(provider, tier);
    const token = secretOf(provider.sign(grant));
    const result = await verifyInPython(python, { token, jwks: keyRing.jwks(), issuer, audience });
    expect(result.err).toBe('');
    expect(result.code).toBe(0);
    expect(JSON.parse(result.out)).toEqual(JSON.parse(Buffer.from(token.split('.')[1]!, 'base64url').toString()));
    expect(JSON.parse(result.out)).toMatchObject({ jti: grant.lease.leaseId, task_id: grant.task.taskId });
  });

  test('refuses it for another audience, and under another broker’s keys', async () => {
    const token = secretOf(provider.sign(makeGrant(provider, tier)));
    const other = await verifyInPython(python, {
      token,
      jwks: keyRing.jwks(),
      issuer,
      audience: 'https://other.example.org',
    });
    expect(other.err).toMatch(/InvalidAudienceError/);
    const [key] = memoryKeyRing().jwks().keys;
    const jwks = { keys: [{ ...key, kid: keyRing.jwks().keys[0]!.kid }] };
    expect((await verifyInPython(python, { token, jwks, issuer, audience })).err).toMatch(/InvalidSignatureError/);
  });
});
