import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { sequences } from './commands.ts';
import { checkGroundTruth, clearAway } from './ground-truth.ts';
import { emptyModel, type Model } from './reference.ts';
import { startWorld, type World } from './world.ts';

/*
 * LEASEHOLD_MODEL_RUNS: how many sequences (default 40). LEASEHOLD_MODEL_SEED and LEASEHOLD_MODEL_PATH: as a failure told
 * them, to play it again.
 */
const runs = Number(process.env['LEASEHOLD_MODEL_RUNS'] ?? 40);
const seed = Number(process.env['LEASEHOLD_MODEL_SEED'] ?? Date.now() % 2 ** 31);
const path = process.env['LEASEHOLD_MODEL_PATH'];

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
      fc.asyncProperty(sequences(25), async (sequence) => {
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
    expect(commands).toBeGreaterThan(runs);
    await sleep(0);
  },
);
