import type pg from 'pg';
import type { Instant } from '../domain/time.ts';
import type { PublicJwk } from './jwk.ts';
import type { KeyTimes, RotationStep } from './rotation.ts';

export interface StoredKey extends KeyTimes {
  publicJwk: PublicJwk;
  /** Null once retired. */
  sealedPrivate: Buffer | null;
}

export interface NewKey {
  kid: string;
  publicJwk: PublicJwk;
  sealedPrivate: Buffer;
}

type Queryable = Pick<pg.Pool, 'query'> | Pick<pg.PoolClient, 'query'>;

interface EmptyRow {
  database_time: string;
  kid: null;
}

interface Row {
  database_time: string;
  kid: string;
  state: KeyTimes['state'];
  public_jwk: PublicJwk;
  sealed_private: Buffer | null;
  activates_at: string;
  retires_at: string;
  delete_at: string;
}

/** All keys of a tenant, a handful of rows found by the primary key's first column; newest last. */
export async function loadKeys(db: Queryable, tenant: string): Promise<{ keys: StoredKey[]; databaseTime: Instant }> {
  const { rows } = await db.query<Row | EmptyRow>(
    `SELECT round(extract(epoch FROM clock_timestamp()) * 1000)::text AS database_time,
            k.kid, k.state, k.public_jwk, k.sealed_private,
            round(extract(epoch FROM k.activates_at) * 1000)::text AS activates_at,
            round(extract(epoch FROM k.retires_at) * 1000)::text AS retires_at,
            round(extract(epoch FROM k.delete_at) * 1000)::text AS delete_at
       FROM (SELECT) AS one LEFT JOIN leasehold.signing_keys AS k ON k.tenant = $1
      ORDER BY k.activates_at, k.kid`,
    [tenant],
  );
  const keys = rows.filter(isRow).map((row) => ({
    kid: row.kid,
    state: row.state,
    publicJwk: row.public_jwk,
    sealedPrivate: row.sealed_private,
    activatesAt: Number(row.activates_at),
    retiresAt: Number(row.retires_at),
    deleteAt: Number(row.delete_at),
  }));
  return { keys, databaseTime: Number(rows[0]?.database_time) };
}

/** The outer join gives one row of nulls for a tenant without keys. */
function isRow(row: Row | EmptyRow): row is Row {
  return row.kid !== null;
}

/** Held to the end of the transaction: one replica at a time changes a tenant's keys. */
export async function lockRotation(client: pg.PoolClient, tenant: string): Promise<void> {
  await client.query(`SELECT pg_advisory_xact_lock(hashtextextended('leasehold signing keys ' || $1, 0))`, [tenant]);
}

export async function applyStep(
  client: pg.PoolClient,
  tenant: string,
  step: RotationStep,
  now: Instant,
  created: NewKey | undefined,
): Promise<void> {
  switch (step.do) {
    case 'create': {
      if (created === undefined) throw new Error('a key to create is missing');
      await client.query(
        `INSERT INTO leasehold.signing_keys
           (tenant, kid, public_jwk, sealed_private, state, created_at, activates_at, retires_at, delete_at)
         VALUES ($1, $2, $3, $4, $5, to_timestamp($6::float8 / 1000), to_timestamp($7::float8 / 1000),
                 to_timestamp($8::float8 / 1000), to_timestamp($9::float8 / 1000))`,
        [
          tenant,
          created.kid,
          JSON.stringify(created.publicJwk),
          created.sealedPrivate,
          step.state,
          now,
          step.activatesAt,
          step.retiresAt,
          step.deleteAt,
        ],
      );
      return;
    }
    case 'activate':
      await client.query(
        `UPDATE leasehold.signing_keys
            SET state = 'active', retires_at = to_timestamp($3::float8 / 1000), delete_at = to_timestamp($4::float8 / 1000)
          WHERE tenant = $1 AND kid = $2`,
        [tenant, step.kid, step.retiresAt, step.deleteAt],
      );
      return;
    case 'retire':
      // Nothing signs with it any more, so its private half goes at once.
      await client.query(
        `UPDATE leasehold.signing_keys
            SET state = 'retired', sealed_private = NULL, delete_at = to_timestamp($3::float8 / 1000)
          WHERE tenant = $1 AND kid = $2`,
        [tenant, step.kid, step.deleteAt],
      );
      return;
    case 'delete':
      await client.query(`DELETE FROM leasehold.signing_keys WHERE tenant = $1 AND kid = $2`, [tenant, step.kid]);
  }
}
