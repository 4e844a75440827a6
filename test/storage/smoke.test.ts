import { expect, test } from 'vitest';
import { asSuperuser, createDatabase } from '../support/postgres.ts';
test('x', async () => { const d = await createDatabase('smoke'); expect((await asSuperuser(d.url, (c) => c.query('select version()'))).rows[0].version).toMatch(/18/); await d.drop(); });
