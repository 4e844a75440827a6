import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { sequences } from './commands.ts';
import { checkGroundTruth, clearAway } from './ground-truth.ts';
import { emptyModel, type Model } from './reference.ts';
import { startWorld, type World } from './world.ts';

/*
 * Sequences of calls on two replicas, one database and one target, against the reference in reference.ts; ground-truth.ts
 * then asks the databases. What it found is a test of its own elsewhere.
 *
 * LEASEHOLD_MODEL_RUNS: how many sequences (default 25, some seconds; 10,000 take about an hour). A failure is shrunk, and
 * tells its seed, its path and, behind the sequence, its replayPath: with these three it is played again as it was shrunk.
 *
 *   LEASEHOLD_MODEL_RUNS=2000 LEASEHOLD_MODEL_SEED=1 npx vitest run test/model
 *   LEASEHOLD_MODEL_SEED=1 LEASEHOLD_MODEL_PATH=228:3:3:5 LEASEHOLD_MODEL_REPLAY=EBAEABBBA8:qK npx vitest run test/model
 */
const runs = Number(process.env['LEASEHOLD_MODEL_RUNS'] ?? 25);
const seed = Number(process.env['LEASEHOLD_MODEL_SEED'] ?? Date.now() % 2 ** 31);
const path = process.env['LEASEHOLD_MODEL_PATH'];
const replayPath = process.env['LEASEHOLD_MODEL_REPLAY'];

let world: World;
beforeAll(async () => {
  world = await startWorld();
});
afterAll(async () => {
  await world?.stop();
});

test(
  `no sequence of calls on two replicas breaks an invariant (${runs} sequences, seed ${seed})`,
  { timeout: 10_800_000 },
  async () => {
    let commands = 0;
    await fc.assert(
      fc.asyncProperty(sequences(25, replayPath), async (sequence) => {
        let model: Model = emptyModel(world.clock.now);
        try {
          await fc.asyncModelRun(() => ({ model: (model = emptyModel(world.clock.now)), real: world }), sequence);
          for (const { clock } of world.replicas) clock.ahead = 0;
          commands += [...sequence].length;
          await checkGroundTruth(model, world);
        } finally {
          await clearAway(world);
        }
      }),
      { numRuns: runs, seed, ...(path === undefined ? {} : { path }), endOnFailure: false },
    );
    if (path === undefined) expect(commands).toBeGreaterThan(runs);
    await sleep(0);
  },
);
