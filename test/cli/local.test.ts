import { cp, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { asSuperuser, createDatabase, type TestDatabase } from '../support/postgres.ts';
import { runCli } from './run-cli.ts';

const quickstart = path.join(import.meta.dirname, '..', '..', 'examples', 'quickstart');
let folder: string;
let config: string;
beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'leasehold-cli-'));
  await cp(quickstart, folder, { recursive: true });
  config = path.join(folder, 'leasehold.yaml');
});
afterAll(async () => await rm(folder, { recursive: true, force: true }));

describe('config check', () => {
  test('says what is valid, with the digest of the policy', async () => {
    const { code, stdout, stderr } = await runCli(['config', 'check', '--no-files', '--config', config, '--json']);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(JSON.parse(stdout)).toMatchObject({
      config,
      policyRevision: expect.stringMatching(/^sha256:[0-9a-f]{64}$/),
    });
  });

  test('lists every mistake with file, line and column, and exits with 9', async () => {
    const broken = path.join(folder, 'broken.yaml');
    await writeFile(broken, `${await readFile(config, 'utf8')}\nsurprise: 1\n`);
    const human = await runCli(['config', 'check', '--no-files'], { LEASEHOLD_CONFIG: broken });
    expect(human.code).toBe(9);
    expect(human.stderr).toMatch(/^leasehold: the configuration has .*\n {2}\S+broken\.yaml:\d+:\d+: .*surprise/);
    const json = await runCli(['config', 'check', '--no-files', '--config', broken, '--json']);
    expect(JSON.parse(json.stderr).error).toMatchObject({
      reason: 'CONFIG_INVALID',
      exit_code: 9,
      issues: [{ file: broken, line: expect.any(Number), column: expect.any(Number) }],
    });
  });

  test('serve refuses the same configuration with the same code, before it opens a port', async () => {
    const { code, stderr } = await runCli(['serve', '--config', path.join(folder, 'missing.yaml')]);
    expect(code).toBe(9);
    expect(stderr).toContain('missing.yaml:1:1');
  });
});

describe('dev', () => {
  test('--vault without a Vault server starts nothing and says how to get one', async () => {
    const dir = path.join(folder, 'dev');
    const missing = path.join(folder, 'no-vault');
    const { code, stdout, stderr } = await runCli(['dev', '--vault', '--dir', dir], { LEASEHOLD_VAULT: missing });
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toBe(`leasehold: LEASEHOLD_VAULT names ${missing}, which cannot be run (VAULT_MISSING)\n`);
    await expect(stat(dir)).rejects.toThrow('ENOENT');
  });
});

describe('migrate', () => {
  let database: TestDatabase;
  beforeAll(async () => {
    database = await createDatabase('cli_migrate');
  });
  afterAll(async () => await database.drop());

  test('brings an empty database to this release, and finds nothing to do the second time', async () => {
    const file = path.join(folder, 'owner-url');
    await writeFile(file, `${database.url}\n`);
    const first = await runCli(['migrate', '--database-url-file', file]);
    expect(first).toMatchObject({ code: 0, stderr: '', stdout: expect.stringMatching(/^applied 0001_/) });
    const second = await runCli(['migrate', '--json'], { LEASEHOLD_DATABASE_URL: database.url });
    expect(JSON.parse(second.stdout)).toEqual({ applied: [], version: expect.any(Number) });
  });

  test('a database of a newer release exits with 10 and is left alone', async () => {
    await asSuperuser(database.url, (client) =>
      client.query(
        `INSERT INTO leasehold.schema_migrations (version, name, sha256) VALUES (9999, '9999_later.sql', 'x')`,
      ),
    );
    const { code, stderr } = await runCli(['migrate', '--json'], { LEASEHOLD_DATABASE_URL: database.url });
    expect(code).toBe(10);
    expect(JSON.parse(stderr).error).toMatchObject({ reason: 'DATABASE_NEWER', exit_code: 10 });
  });

  test('a database that is not there exits with 7, and its password is not shown', async () => {
    const { code, stderr } = await runCli(['migrate'], { LEASEHOLD_DATABASE_URL: 'postgres://u:canary@127.0.0.1:1/x' });
    expect(code).toBe(7);
    expect(stderr).not.toContain('canary');
  });

  test('a wrong login exits with 7, and its password is not shown', async () => {
    const url = new URL(database.url);
    url.password = 'canary';
    const { code, stderr } = await runCli(['migrate'], { LEASEHOLD_DATABASE_URL: url.href });
    expect(code).toBe(7);
    expect(stderr).not.toContain('canary');
  });
});
