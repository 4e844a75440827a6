import { afterAll, beforeAll, expect, test } from 'vitest';
import pg from 'pg';
import { checkSchema, migrate } from '../../src/storage/migrate.ts';
import { asSuperuser, createDatabase, type TestDatabase } from '../support/postgres.ts';

let database: TestDatabase;
beforeAll(async () => {
  database = await createDatabase('migrate');
});
afterAll(async () => {
  await database.drop();
});

test('two brokers that migrate at once apply each migration once', async () => {
  const [a, b] = await Promise.all([migrate(database.url), migrate(database.url)]);
  expect(a.version).toBe(b.version);
  expect(Math.min(a.applied.length, b.applied.length)).toBe(0);
  expect(Math.max(a.applied.length, b.applied.length)).toBe(a.version);
});

test('an empty database is refused with the command that mends it', async () => {
  const empty = await createDatabase('empty');
  const pool = new pg.Pool({ connectionString: empty.url });
  // The drop may come before the server has seen that a connection was closed.
  pool.on('error', () => undefined);
  try {
    await expect(checkSchema(pool)).rejects.toMatchObject({
      code: 'DATABASE_BEHIND',
      message: expect.stringContaining('leasehold migrate') as string,
    });
  } finally {
    await pool.end();
    await empty.drop();
  }
});

test('a migration that was changed after it had been applied is refused', async () => {
  await tampered(`UPDATE leasehold.schema_migrations SET sha256 = 'other' WHERE version = 1`, async () => {
    await expect(migrate(database.url)).rejects.toThrow(/0001_core\.sql was changed/);
  });
});

test('a newer database stops an older broker, and migrate changes nothing', async () => {
  await tampered(`INSERT INTO leasehold.schema_migrations VALUES (9999, '9999_future.sql', 'x')`, async () => {
    await expect(migrate(database.url)).rejects.toMatchObject({ code: 'DATABASE_NEWER' });
  });
});

async function tampered(sql: string, check: () => Promise<void>): Promise<void> {
  await asSuperuser(database.url, async (client) => {
    const { rows } = await client.query('SELECT * FROM leasehold.schema_migrations');
    await client.query(sql);
    try {
      await check();
    } finally {
      await client.query('DELETE FROM leasehold.schema_migrations');
      for (const row of rows as { version: number; name: string; sha256: string }[]) {
        await client.query('INSERT INTO leasehold.schema_migrations VALUES ($1, $2, $3)', [
          row.version,
          row.name,
          row.sha256,
        ]);
      }
    }
  });
}
