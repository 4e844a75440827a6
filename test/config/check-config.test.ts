import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { checkConfig } from '../../src/config/check-config.ts';
import { formatIssue } from '../../src/config/issue.ts';
import { loadConfig } from '../../src/config/load-config.ts';
import { readSealingKey } from '../../src/config/secret-source.ts';
import { minimal, temporaryFolder } from './support.ts';

const agent = `apiVersion: leasehold.dev/v1
kind: Agent
metadata: { name: a, owner: o }
spec: { workloads: [spiffe://acme.test/a] }
`;
const target = 'targets: { w: { kind: postgres, host: h, database: d, user: u, passwordEnv: W_PASSWORD } }\n';
const sealingKey = Buffer.alloc(32, 7).toString('base64');

/** A folder with the files given; answers with the complaints about its leasehold.yaml, and what was made of it. */
async function check(files: Record<string, string>, env: Record<string, string> = {}, more: { files?: boolean } = {}) {
  const folder = temporaryFolder();
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(path.dirname(path.join(folder, name)), { recursive: true });
    writeFileSync(path.join(folder, name), text);
  }
  const result = await checkConfig({ path: path.join(folder, 'leasehold.yaml'), env, ...more });
  return { ...result, complaints: result.issues.map((issue) => formatIssue(issue).replaceAll(`${folder}/`, '')) };
}

describe('a check of everything', () => {
  test('passes with config and revision when all is there', async () => {
    const result = await check({ 'leasehold.yaml': minimal, 'bundle.json': '{}', 'policy/a.yaml': agent });
    expect(result.complaints).toEqual([]);
    expect(result.ok).toBe(true);
    if (!result.ok) throw new Error('has complaints');
    expect([...result.revisions.get('default')!.agents.keys()]).toEqual(['a']);
    expect(result.config.broker.issuer).toBe('https://broker.acme.test');
  });

  test('says which files and variables are missing, each at the field that names it', async () => {
    const text = `${minimal}${target}server:
  grpc: { listen: 0.0.0.0:1, tls: { certFile: no.pem, keyFile: no.key } }
database: { urlFile: db.url, caFile: ca.pem }
keys: { sealingKeyEnv: SEALING }
`;
    const result = await check(
      { 'leasehold.yaml': text, 'policy/a.yaml': agent, 'db.url': '' },
      { SEALING: 'dG9vIHNob3J0' },
    );
    expect(result.ok).toBe(false);
    expect(result.complaints).toEqual([
      'leasehold.yaml:4:66: attestation.trustDomains[0].bundle.file: bundle.json does not exist',
      'leasehold.yaml:6:77: targets.w.passwordEnv: the environment variable W_PASSWORD is not set',
      'leasehold.yaml:8:47: server.grpc.tls.certFile: no.pem does not exist',
      'leasehold.yaml:8:64: server.grpc.tls.keyFile: no.key does not exist',
      'leasehold.yaml:9:22: database.urlFile: db.url is empty',
      'leasehold.yaml:9:38: database.caFile: ca.pem does not exist',
      'leasehold.yaml:10:24: keys.sealingKeyEnv: the sealing key must be 32 bytes in base64; make one with: openssl rand -base64 32',
    ]);
  });

  test('can leave files and secrets alone', async () => {
    const result = await check({ 'leasehold.yaml': minimal + target, 'policy/a.yaml': agent }, {}, { files: false });
    expect(result.complaints).toEqual([]);
  });

  test('finds a target that policy names and the configuration does not have', async () => {
    const tool = `apiVersion: leasehold.dev/v1
kind: Tool
metadata: { name: t, owner: o }
spec:
  resource: https://t.test
  tiers:
    read:
      provider: postgres
      revocation: immediate
      ttl: { min: 1m, default: 5m, max: 1h }
      postgres: { target: ww, groupRole: r }
`;
    const files = { 'leasehold.yaml': minimal + target, 'policy/t.yaml': tool };
    expect((await check(files, {}, { files: false })).complaints).toEqual([
      'policy/t.yaml:11:27: spec.tiers.read.postgres.target: the configuration has no target "ww"; did you mean "w"?',
    ]);
  });

  test('finds an agent of a trust domain from which nobody can call', async () => {
    const files = { 'leasehold.yaml': minimal, 'policy/a.yaml': agent.replace('acme.test', 'acme.tset') };
    expect((await check(files, {}, { files: false })).complaints).toEqual([
      'policy/a.yaml:4:21: spec.workloads[0]: no trust domain "acme.tset" is configured; add it to the configuration\'s attestation, or use one of: acme.test',
    ]);
  });

  test('stops at a configuration that cannot be read', async () => {
    const result = await check({ 'leasehold.yaml': 'kind: Config' });
    expect(result).toMatchObject({ ok: false });
  });

  test('says so when there is no policy', async () => {
    expect((await check({ 'leasehold.yaml': minimal, 'bundle.json': '{}' })).complaints).toEqual([
      'policy:1:1: does not exist; policy.directory names the folder of the policy documents',
    ]);
  });
});

describe('a secret', () => {
  function sources(env: Record<string, string>) {
    const folder = temporaryFolder();
    const file = path.join(folder, 'leasehold.yaml');
    writeFileSync(file, `${minimal}database: { urlEnv: DB }\nkeys: { sealingKeyFile: key }\n`);
    return { folder, config: loadConfig({ path: file, env }) };
  }

  test('is read when it is needed, without its newline, and follows a changed file', () => {
    const { folder, config } = sources({});
    writeFileSync(path.join(folder, 'key'), `${sealingKey}\n`);
    expect(readSealingKey(config.keys.sealingKey!)).toEqual(Buffer.alloc(32, 7));
    writeFileSync(path.join(folder, 'key'), Buffer.alloc(32, 8).toString('base64'));
    expect(readSealingKey(config.keys.sealingKey!)).toEqual(Buffer.alloc(32, 8));
  });

  test('is not in the configuration as a value', () => {
    const { config } = sources({ DB: 'postgres://u:hunter2@h/d' });
    expect(config.database!.url.read()).toBe('postgres://u:hunter2@h/d');
    expect(config.database!.url.source).toBe('env:DB');
    expect(JSON.stringify(config)).not.toContain('hunter2');
  });

  test('that is missing is named with its field, and never with its value', () => {
    const { folder, config } = sources({});
    expect(() => config.database!.url.read()).toThrow('database.urlEnv: the environment variable DB is not set');
    expect(() => config.keys.sealingKey!.read()).toThrow(/^keys\.sealingKeyFile: .*key does not exist$/);
    writeFileSync(path.join(folder, 'key'), 'hunter2hunter2');
    expect(() => readSealingKey(config.keys.sealingKey!)).toThrow(/^(?!.*hunter2).*must be 32 bytes in base64/);
  });
});
