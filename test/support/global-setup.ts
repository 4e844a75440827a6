import { randomBytes } from 'node:crypto';
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { TestProject } from 'vitest/node';
import { startEmbeddedPostgres } from '../../src/dev/postgres.ts';

declare module 'vitest' {
  export interface ProvidedContext {
    /** Superuser URL of the shared test cluster. */
    postgresUrl: string;
  }
}

/** One real PostgreSQL for the whole run; every test file makes databases of its own in it (`createDatabase`). */
export default async function setup(project: TestProject) {
  const dir = await mkdtemp(path.join(tmpdir(), 'leasehold-test-'));
  // As root the server runs as the user `postgres`, who has to get through to its data.
  await chmod(dir, 0o755);
  const password = randomBytes(12).toString('hex');
  const server = await startEmbeddedPostgres({
    dataDir: path.join(dir, 'pg'),
    password,
    settings: ['fsync=off', 'full_page_writes=off', 'max_connections=300', 'log_min_messages=log'],
  });
  project.provide('postgresUrl', `postgres://${server.user}:${password}@${server.host}:${server.port}/postgres`);
  return async () => {
    await server.stop();
    await rm(dir, { recursive: true, force: true });
  };
}
